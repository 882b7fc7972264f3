"""Atomic writes: a file name always holds the whole previous content or the whole new one."""

from __future__ import annotations

import contextlib
import filecmp
import os
import re
import shutil
import socket
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from kdtrain.errors import KdtrainError, os_reason

# .NAME.RANDOM.SPACE-PID-START.tmp names its process, so that others can remove it once that has ended.
_TEMPORARY = re.compile(r"\..+\.(?P<space>[^/]+-[0-9a-f]+-\d+)-(?P<pid>\d+)-(?P<start>\d+)\.tmp")

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_START_TIME = 19  # among the fields of /proc/PID/stat after the name: clock ticks since the machine's start
_FOREIGN_SECONDS = 86_400  # without a change, after which what a process of another space has left is removed


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
    temporary = path.parent / _temporary_name(path.name)
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
        reason = os_reason(error)
        if isinstance(error, FileNotFoundError):
            reason = f"the folder {path.parent} does not exist"
        raise KdtrainError(f"cannot write {path}: {reason}.") from error
    _flush_folder(path.parent)


def copy_new(source: Path, target: Path, folder: Path) -> bool:
    """Copies a file under a name that is free. Nothing is overwritten, and no name holds half a file.

    Args:
        source: the file.
        target: the name of the copy.
        folder: a folder for this process, on the disk of ``target``, such as a ``temporary_folder``.

    Returns:
        Whether it was copied; False if ``target`` holds the same bytes already.

    Raises:
        KdtrainError: ``target`` holds something else, or the file cannot be read or written.
    """
    temporary = folder / "copy"
    try:
        if not os.path.lexists(target):
            shutil.copyfile(source, temporary)
            with contextlib.suppress(FileExistsError):  # another process has just taken the name
                _name_new(temporary, target)
                return True
        if os.path.isfile(target) and filecmp.cmp(source, target, shallow=False):
            return False
    except OSError as error:
        raise KdtrainError(f"cannot copy {source} to {target}: {os_reason(error)}.") from error
    raise KdtrainError(f"{source} is not copied: {target} exists, and is something else.")


def _name_new(temporary: Path, target: Path) -> None:
    """Moves a file to a name that is free, or raises FileExistsError."""
    try:
        os.link(temporary, target)
        temporary.unlink()
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links, such as a USB stick's: the name is taken first, then filled
        os.close(os.open(target, os.O_CREAT | os.O_EXCL))
        os.replace(temporary, target)


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
    folder = parent / _temporary_name("kdtrain")
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
        raise KdtrainError(f"cannot make the directory {folder}: {os_reason(error)}.") from error


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
        raise KdtrainError(f"cannot write in the directory {folder}: {os_reason(error)}.") from error


def _temporary_name(name: str) -> str:
    return f".{name}.{uuid.uuid4().hex[:8]}.{_space()}-{os.getpid()}-{_start_time('self')}.tmp"


def _space() -> str:
    """Returns a name of this process's PID namespace, HOST-BOOT-INODE; "" if it cannot be read.

    Containers may share a host name and a folder, but not their process numbers.
    """
    try:
        return f"{socket.gethostname()}-{_BOOT_ID.read_text()[:8]}-{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def _start_time(process: int | str) -> str:
    """Returns the start time of a process in this PID namespace; "" if it has ended."""
    try:
        with open(f"/proc/{process}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return ""
    if not fields or fields[0] in (b"Z", b"X"):  # a zombie: ended, but not waited for
        return ""
    return fields[_START_TIME].decode()


def _sweep(folder: Path) -> None:
    """Removes temporary files and folders of ended processes, as far as possible.

    Whether a process of another PID namespace or machine has ended is not known: what it left is removed
    after a day without a change.
    """
    temporary = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        temporary = [(Path(entry), match) for entry in entries if (match := _TEMPORARY.fullmatch(entry.name))]
    for path, owner in temporary:
        with contextlib.suppress(OSError):
            # /proc may show another namespace's processes.
            if owner["space"] == _space() and os.readlink("/proc/self") == str(os.getpid()):
                is_left = _start_time(owner["pid"]) != owner["start"]
            else:
                is_left = time.time() - _last_change(path) > _FOREIGN_SECONDS
            if is_left and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            elif is_left:
                path.unlink()


def _last_change(path: Path) -> float:
    """Returns the time at which a file, or anything in a folder, was last written to."""
    return max(entry.lstat().st_mtime for entry in (path, *path.rglob("*")))


def _flush_folder(folder: Path) -> None:
    """Flushes a rename to disk, on file systems that can flush directories."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
