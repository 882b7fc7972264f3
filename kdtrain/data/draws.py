"""Seeds of independent streams, and random numbers that depend on seed, image and variant alone."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True)
class Draws:
    """The random numbers of some images, each in one variant.

    They depend on nothing else: batches, epochs, processes and the order of calls do not change them. The
    generator is SplitMix64 (Steele, Lea, Flood 2014, "Fast Splittable Pseudorandom Number Generators",
    figure 17), with a counter made of image and variant, because NumPy's generators cannot be placed at
    many positions at once.

    Attributes:
        seed: the seed.
        images: (B,) int64, the number of each image.
        variants: (B,) int64, the variant of each image.
    """

    seed: int
    images: NDArray[np.int64]
    variants: NDArray[np.int64]

    def uniform(self, purpose: str) -> NDArray[np.float64]:
        """Returns (B,) numbers from 0 to below 1, independent of those for any other purpose."""
        stream = np.uint64(_stream(self.seed, purpose))
        words = _mixed(stream + _GOLDEN * self.images.astype(np.uint64))
        words = _mixed(words + _GOLDEN * (self.variants.astype(np.uint64) + np.uint64(1)))
        return (words >> np.uint64(11)) * 2.0**-53

    def integers(self, purpose: str, stop: int) -> NDArray[np.int64]:
        """Returns (B,) whole numbers from 0 to below ``stop``, as ``uniform`` does."""
        return (self.uniform(purpose) * stop).astype(np.int64)


@functools.cache  # an epoch asks for the same few streams at every step
def _stream(seed: int, purpose: str) -> int:
    return derive_seed(seed, "variants", purpose)


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Returns (B,) words whose every bit depends on all bits of its argument (SplitMix64's finalizer)."""
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    result: NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return result


def derive_seed(seed: int, *purpose: str | int) -> int:
    """Returns a 63-bit seed for one purpose, independent of the seeds for all other purposes.

    Weights, data order and dropout each draw from a stream of their own, named by ``purpose`` (and
    the epoch), so that none of them depends on how much another one has drawn before.
    """
    words = [seed, *(int.from_bytes(str(part).encode(), "little") for part in purpose)]
    return int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> np.uint64(1))
