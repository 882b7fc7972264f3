"""Seeds of independent streams of random numbers."""

from __future__ import annotations

import numpy as np


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Returns a 63-bit seed for one purpose, independent of the seeds for all other purposes.

    Weights, data order and dropout each draw from a stream of their own, named by ``purpose`` (and
    the epoch), so that none of them depends on how much another one has drawn before.
    """
    words = [seed, *(int.from_bytes(str(part).encode(), "little") for part in purpose)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
