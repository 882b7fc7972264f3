"""Writing a file so that its name always stands for something whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
import uuid
from pathlib import Path

from kdtrain.errors import KdtrainError


def write_bytes(path: Path, data: bytes) -> None:
    """Writes ``data`` under a temporary name, flushes it to disk, and renames it to ``path``.

    Whoever reads ``path``, at any moment and after any crash, finds the previous content or the
    new one, never a part. Missing parent folders are made.

    Raises:
        KdtrainError: the file cannot be written; ``path`` is as it was before.
    """
    _make_folder(path.parent)
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}.tmp"
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise KdtrainError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    _flush_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """As ``write_bytes``, for UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def ensure_writable(folder: Path) -> None:
    """Makes ``folder`` if need be, and tries to write there.

    Raises:
        KdtrainError: it cannot be made or written; better to know before hours of work.
    """
    _make_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise KdtrainError(f"cannot write in the directory {folder}: {error.strerror or error}.") from error


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise KdtrainError(f"cannot make the directory {folder}: there is a file of that name.") from None
    except OSError as error:
        raise KdtrainError(f"cannot make the directory {folder}: {error.strerror or error}.") from error


def _flush_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut, on file systems that let directories be flushed."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
