"""Reader of IDX files: a header that states type and shape, then the values as plain bytes."""

from __future__ import annotations

import gzip
import hashlib
import math
import os
import struct
import zlib
from pathlib import Path
from typing import IO, BinaryIO

import numpy as np
from numpy.typing import NDArray

from kdtrain.errors import DataError, os_reason, size_text
from kdtrain.runtime.locations import missing_path_text
from kdtrain.runtime.regular_files import open_regular

_TYPES = {
    0x08: "unsigned bytes",
    0x09: "signed bytes",
    0x0B: "16-bit integers",
    0x0C: "32-bit integers",
    0x0D: "32-bit floats",
    0x0E: "64-bit floats",
}
_UNSIGNED_BYTES = 0x08
_GZIP = b"\x1f\x8b"
_LARGEST = 640 << 20  # bytes; EMNIST's largest file has 522 MiB
_HARMLESS = 64 << 20  # bytes that any zipped file may unzip to
_HIGHEST_RATIO = 100  # of unzipped to zipped size: 2 to 10 for images, 1,000 for a zip bomb
_CHUNK = 1 << 20  # bytes


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Returns the array of unsigned bytes in an IDX file, plain or gzipped.

    The first two bytes tell whether it is gzipped, not the name. The memory in use grows with the bytes
    that the file really holds, up to the size that its header states.

    Args:
        path: the file.

    Returns:
        A writable uint8 array of 1 to 4 dimensions, in the shape that the header states.

    Raises:
        DataError: the file is missing, unreadable, damaged, or no IDX file of unsigned bytes.
    """
    try:
        with open_regular(path) as file:
            gzipped = file.read(len(_GZIP)) == _GZIP
            file.seek(0)
            if not gzipped:
                return _read(file, path, _LARGEST)
            with gzip.open(file) as unzipped:
                return _read(unzipped, path, min(_LARGEST, most_unzipped(file)))
    except FileNotFoundError as error:
        raise DataError(f"{missing_path_text(path)} does not exist.") from error
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged and cannot be unzipped ({error}); get it again.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        raise DataError(f"{path} cannot be read: {os_reason(error)}.") from error


def most_unzipped(zipped: BinaryIO) -> int:
    """Returns how many bytes a zipped file may unzip to."""
    return max(_HARMLESS, _HIGHEST_RATIO * os.fstat(zipped.fileno()).st_size)


def read_at_most(file: IO[bytes] | gzip.GzipFile, limit: int) -> bytearray:
    """Reads up to ``limit`` bytes in pieces, so that a false header allocates no memory."""
    content = bytearray()
    while len(content) < limit and (piece := file.read(min(_CHUNK, limit - len(content)))):
        content += piece
    return content


def content_sha256(array: NDArray[np.uint8]) -> str:
    """Returns the SHA-256 (hex) of the unzipped IDX file that an array was read from.

    ``read_idx`` accepts one byte sequence for each array, so the array determines the file.

    Args:
        array: uint8, of 1 to 4 dimensions.
    """
    digest = hashlib.sha256(_header(array.shape))
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _header(shape: tuple[int, ...]) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, _UNSIGNED_BYTES, len(shape), *shape)


def _read(file: BinaryIO | gzip.GzipFile, path: Path, most: int) -> NDArray[np.uint8]:
    shape = _read_shape(file, path)
    # An empty dimension counts as 1, to bound the others too: NumPy refuses (0, 2**32 - 1, 2**32 - 1).
    if math.prod(max(length, 1) for length in shape) > most:
        reads = "reads" if most == _LARGEST else f"unzips from {path.stat().st_size:,} bytes"
        raise DataError(
            f"{path} states a size of {size_text(shape)} bytes, more than the {most >> 20} MiB that kdtrain "
            f"{reads}."
        )
    expected = math.prod(shape)
    content = read_at_most(file, expected + 1)
    if len(content) != expected:
        size = f"{len(content)}" if len(content) < expected else "more"
        fault = "truncated" if len(content) < expected else "too long"
        raise DataError(f"{path} is {fault}: its header states {expected} bytes of data, it has {size}.")
    return np.frombuffer(content, dtype=np.uint8).reshape(shape)


def _read_shape(file: BinaryIO | gzip.GzipFile, path: Path) -> tuple[int, ...]:
    """Reads the header: two zero bytes, the type, the number of dimensions, and their lengths."""
    magic = file.read(4)
    if len(magic) == 4 and magic[:2] != b"\0\0":
        raise DataError(f"{path} is not an IDX file: it starts with {magic.hex(' ')}, not with 00 00.")
    if len(magic) == 4 and magic[2] != _UNSIGNED_BYTES:
        kind = _TYPES.get(magic[2], "an unknown type")
        raise DataError(f"{path} holds {kind} (type 0x{magic[2]:02x}); kdtrain reads unsigned bytes (0x08).")
    if len(magic) == 4 and not 1 <= magic[3] <= 4:
        raise DataError(f"{path} has {magic[3]} dimensions; kdtrain reads IDX files of 1 to 4.")
    lengths = file.read(4 * magic[3]) if len(magic) == 4 else b""
    if len(magic) < 4 or len(lengths) < 4 * magic[3]:
        raise DataError(f"{path} is truncated: it ends inside the IDX header.")
    return struct.unpack(f">{magic[3]}I", lengths)
