"""Arrays in IDX's format for small data sets in files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def idx_bytes(array: NDArray[np.uint8]) -> bytes:
    """Returns the format as its description says: 00 00, type, dimensions, big-endian lengths, data."""
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 0x08, array.ndim]) + lengths + array.tobytes()
