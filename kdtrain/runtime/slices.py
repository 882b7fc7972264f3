"""Slices of large arrays, small enough to be worked on in memory."""

from __future__ import annotations

import math
from collections.abc import Iterator

_AT_ONCE = 1 << 22  # values that are counted, hashed or normalised together


def in_slices(shape: tuple[int, ...]) -> Iterator[slice]:
    """Yields slices along the first axis that are small enough to be worked on in memory."""
    step = max(1, _AT_ONCE // max(1, math.prod(shape[1:])))
    return (slice(start, start + step) for start in range(0, shape[0], step))
