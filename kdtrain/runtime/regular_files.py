"""Reading of regular files only, up to a size: no pipe blocks the process, and no device is read.

Errors are ``OSError``s whose ``strerror`` completes the sentence "FILE cannot be read: ...".
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular(path: Path, most: int | None = None) -> BinaryIO:
    """Opens a regular file, or the target of a link, for reading.

    The checks use the open descriptor, so the file cannot be exchanged after them.

    Args:
        path: the file.
        most: the largest size in bytes; unlimited by default.

    Raises:
        OSError: it cannot be opened, is no regular file, or is larger.
    """
    # O_NONBLOCK: opening a pipe does not wait for a writer. O_NOCTTY: a terminal does not become the
    # controlling terminal of this process.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    status = os.fstat(descriptor)
    kind = stat.S_IFMT(status.st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')}, not a file", str(path))
    if most is not None and status.st_size > most:
        os.close(descriptor)
        raise _too_large(path, status.st_size, most)
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most: int) -> bytes:
    """Returns the content of a regular file of at most ``most`` bytes.

    Raises:
        OSError: it cannot be opened, is no regular file, or is larger.
    """
    with open_regular(path, most) as file:
        content = file.read(os.fstat(file.fileno()).st_size + 1)
    if len(content) > most:  # it has grown since it was opened
        raise _too_large(path, len(content), most)
    return content


def _too_large(path: Path, size: int, most: int) -> OSError:
    return OSError(errno.EFBIG, f"it holds {size:,} bytes, and should hold at most {most:,}", str(path))


def read_text(path: Path, most: int) -> str:
    """Returns the UTF-8 text of a regular file.

    Args:
        path: the file.
        most: the largest size, in bytes.

    Raises:
        OSError: it cannot be opened, is no regular file, or is larger.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def descriptor_path(file: BinaryIO) -> str:
    """Returns a path of an open file, for libraries that open files by path."""
    return f"/proc/self/fd/{file.fileno()}"
