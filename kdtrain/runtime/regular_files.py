"""Reading a file that somebody else may have put there: a pipe is not waited for, a device not read.

What cannot be read is an ``OSError`` whose ``strerror`` completes the sentence "FILE cannot be read: ...".
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
    """Opens a file, or what a link leads to, for reading.

    It is the open file that is looked at, so nobody can put something else there in between.

    Args:
        path: the file.
        most: how many bytes it may hold; any number by default.

    Raises:
        OSError: it cannot be opened, is no regular file, or holds more.
    """
    # O_NONBLOCK: to open a pipe does not wait for a writer. O_NOCTTY: a terminal does not become ours.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    found = os.fstat(descriptor)
    kind = stat.S_IFMT(found.st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise OSError(errno.EINVAL, f"it is {_KINDS.get(kind, 'something else')}, not a file", str(path))
    if most is not None and found.st_size > most:
        os.close(descriptor)
        raise _too_large(path, found.st_size, most)
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path, most: int) -> bytes:
    """Returns the content of a regular file of at most ``most`` bytes.

    Raises:
        OSError: it cannot be opened, is no regular file, or holds more.
    """
    with open_regular(path, most) as file:
        content = file.read(os.fstat(file.fileno()).st_size + 1)
    if len(content) > most:  # it has grown meanwhile
        raise _too_large(path, len(content), most)
    return content


def _too_large(path: Path, size: int, most: int) -> OSError:
    return OSError(errno.EFBIG, f"it holds {size:,} bytes, and should hold at most {most:,}", str(path))


def read_text(path: Path, most: int) -> str:
    """As ``read_bytes``, for UTF-8 text.

    Raises:
        OSError: as there.
        UnicodeDecodeError: it is not UTF-8.
    """
    return read_bytes(path, most).decode("utf-8")


def descriptor_path(file: BinaryIO) -> str:
    """Returns a name for an open file, for libraries that open files by name themselves."""
    return f"/proc/self/fd/{file.fileno()}"
