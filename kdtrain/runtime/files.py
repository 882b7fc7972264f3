"""Writing a file so that its name always stands for something whole."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from kdtrain.errors import KdtrainError

# .NAME.HOST-PID-START.tmp: whose it is, so that it can be told when its owner is no more.
_TEMPORARY = re.compile(r"\..+\.(?P<owner>[^/]+-\d+-\d+)\.tmp")


def write_bytes(path: Path, data: bytes) -> None:
    """Writes ``data`` under a temporary name, flushes it to disk, and renames it to ``path``.

    Whoever reads ``path``, at any moment and after any crash, finds the previous content or the
    new one, never a part. What a process that was killed has left under a temporary name in the
    same folder is removed. The folder must be there: one that was deleted while a run went on is
    not made again for the rest of its files.

    Raises:
        KdtrainError: the file cannot be written; ``path`` is as it was before.
    """
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.{_owner(os.getpid())}.tmp"
    try:
        _sweep(path.parent)
        try:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, FileNotFoundError):
            reason = f"the folder {path.parent} is not there, or not any more"
        raise KdtrainError(f"cannot write {path}: {reason}.") from error
    _flush_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """As ``write_bytes``, for UTF-8 text."""
    write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yields a new folder in ``parent`` that is gone afterwards, with all that is in it.

    What processes that were killed have left there is removed first.
    """
    _sweep(parent)
    folder = parent / f".kdtrain.{uuid.uuid4().hex[:8]}.{_owner(os.getpid())}.tmp"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Makes a folder, and those that it is in, where they are not there yet.

    Raises:
        KdtrainError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise KdtrainError(f"cannot make the directory {folder}: there is a file of that name.") from None
    except OSError as error:
        raise KdtrainError(f"cannot make the directory {folder}: {error.strerror or error}.") from error


def ensure_writable(folder: Path) -> None:
    """Makes ``folder`` if need be, and tries to write there.

    Raises:
        KdtrainError: it cannot be made or written; better to know before hours of work.
    """
    make_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise KdtrainError(f"cannot write in the directory {folder}: {error.strerror or error}.") from error


def _owner(pid: int) -> str:
    """Returns a name for a process of this machine that no later process will have; "" if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    if not fields or fields[0] in (b"Z", b"X"):  # ended, but nobody has asked how yet
        return ""
    start = fields[19].decode()  # clock ticks since the machine's
    return f"{socket.gethostname()}-{pid}-{start}"


def _sweep(folder: Path) -> None:
    """Removes what processes of this machine that have ended left in a folder, as far as it can."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        found = [(entry, match["owner"]) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))]
    for entry, owner in found:
        host, pid, _ = owner.rsplit("-", 2)
        if host == socket.gethostname() and _owner(int(pid)) != owner:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _flush_folder(folder: Path) -> None:
    """Makes the rename itself survive a power cut, on file systems that let directories be flushed."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
