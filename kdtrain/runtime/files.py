"""Atomic writes: a file name always holds the whole previous content or the whole new one."""

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

# .NAME.HOST-PID-START.tmp names the process that writes it, so that others can remove it once that has ended.
_TEMPORARY = re.compile(r"\..+\.(?P<owner>[^/]+-\d+-\d+)\.tmp")

_START_TIME = 19  # among the fields of /proc/PID/stat after the name: clock ticks since the machine's start


def write_bytes(path: Path, data: bytes) -> None:
    """Writes ``data`` under a temporary name, flushes it to disk, and renames it to ``path``.

    A reader of ``path`` gets the previous content or the new one, at any moment and after any crash.
    Temporary files in the same folder whose process was killed are removed. The folder must exist: if it
    was deleted during a run, it is not made again.

    Args:
        path: the file.
        data: its content.

    Raises:
        KdtrainError: the file cannot be written; ``path`` is unchanged.
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
            reason = f"the folder {path.parent} does not exist"
        raise KdtrainError(f"cannot write {path}: {reason}.") from error
    _flush_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Writes a text file whole: under a temporary name, flushed to disk, and renamed.

    Args:
        path: the file; an existing one is replaced.
        text: the content, which is written as UTF-8.
    """
    write_bytes(path, text.encode("utf-8"))


@contextlib.contextmanager
def temporary_folder(parent: Path) -> Iterator[Path]:
    """Yields a new folder in ``parent``, and removes it with its content afterwards.

    Temporary files and folders of killed processes in ``parent`` are removed first.
    """
    _sweep(parent)
    folder = parent / f".kdtrain.{uuid.uuid4().hex[:8]}.{_owner(os.getpid())}.tmp"
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Makes a folder and its parents, if they do not exist.

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
    """Makes ``folder`` if it does not exist, and writes a trial file there.

    A run calls this first, because an error after hours of training would lose the work.

    Raises:
        KdtrainError: it cannot be made or written.
    """
    make_folder(folder)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0" * 4096)
    except OSError as error:
        raise KdtrainError(f"cannot write in the directory {folder}: {error.strerror or error}.") from error


def _owner(pid: int) -> str:
    """Returns a name of a process on this machine that no later process has; "" if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    if not fields or fields[0] in (b"Z", b"X"):  # a zombie: ended, but not waited for
        return ""
    return f"{socket.gethostname()}-{pid}-{fields[_START_TIME].decode()}"


def _sweep(folder: Path) -> None:
    """Removes temporary files and folders of this machine's ended processes, as far as possible."""
    temporary = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        temporary = [
            (entry, match["owner"]) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))
        ]
    for entry, owner in temporary:
        host, pid, _ = owner.rsplit("-", 2)
        if host == socket.gethostname() and _owner(int(pid)) != owner:
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def _flush_folder(folder: Path) -> None:
    """Flushes a rename to disk, on file systems that can flush directories."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
