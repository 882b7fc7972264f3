"""The records of TensorBoard's event files."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from kdtrain.runtime.regular_files import open_regular

_LARGEST = 1 << 28  # bytes of a file; an hour of training writes less than a million
_HEAD, _FOOT = 12, 4  # bytes: length and its checksum before a record, the record's checksum after it


def read_records(path: Path) -> Iterator[bytes]:
    """Yields the content of each record, up to the first that is damaged or cut off.

    Raises:
        OSError: the file cannot be read, is no regular file, or is larger than 256 MiB.
    """
    from tensorboardX.record_writer import masked_crc32c

    with open_regular(path, _LARGEST) as file:
        left = os.fstat(file.fileno()).st_size
        while left >= _HEAD + _FOOT:
            head = file.read(_HEAD)
            length, check = struct.unpack("<QI", head)
            left -= _HEAD + length + _FOOT
            if left < 0 or check != masked_crc32c(head[:8]):
                return
            record = file.read(length)
            if file.read(_FOOT) != struct.pack("<I", masked_crc32c(record)):
                return
            yield record
