"""Writing a file so that its name always stands for something whole."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

from kdtrain.errors import KdtrainError


def write_bytes(path: Path, data: bytes) -> None:
    """Writes ``data`` under a temporary name, flushes it to disk, and renames it to ``path``.

    Whoever reads ``path``, at any moment and after any crash, finds the previous content or the
    new one, never a part. Missing parent folders are made.

    Raises:
        KdtrainError: the file cannot be written; ``path`` is as it was before.
    """
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fchmod(file.fileno(), 0o666 & ~_umask())
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except OSError as error:
        raise KdtrainError(f"cannot write {path}: {error.strerror or error}.") from error
    finally:
        if temporary is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def write_text(path: Path, text: str) -> None:
    """As ``write_bytes``, for UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


def ensure_writable(folder: Path) -> None:
    """Makes ``folder`` if need be, and tries to write there.

    Raises:
        KdtrainError: it cannot be made or written; better to know before hours of work.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise KdtrainError(f"cannot write in the directory {folder}: {error.strerror or error}.") from error


def _umask() -> int:
    """The process's file mode mask, which ``mkstemp`` does not honour (it makes 0600)."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _flush_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
