"""The draws of images without labels: how many of them join each batch, and which."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.draws import derive_seed

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class TransferDraw:
    """Images without labels join the batches in passes: each pass is a permutation of all of them.

    A pass goes on where the last epoch has ended, so every image is drawn equally often. The images of an
    epoch follow from the seed and the epoch's number alone, so a resumed run draws the same.

    Attributes:
        images: the number of images without labels, at least 1.
        share: their share of each batch, above 0 and below 1.
        seed: the seed of the permutations.
    """

    images: int
    share: float
    seed: int

    def sizes(self, labelled: Sequence[int]) -> list[int]:
        """Returns how many of these images join each batch: the nearest number to the share, at least 1.

        Args:
            labelled: the number of labelled images in each batch.
        """
        ratio = self.share / (1.0 - self.share)
        return [max(1, round(size * ratio)) for size in labelled]

    def epoch(self, epoch: int, sizes: Sequence[int]) -> Iterator[Positions]:
        """Yields the images that join each batch of an epoch: positions from 0 to below ``images``.

        Args:
            epoch: the number of the epoch, at least 1.
            sizes: how many images join each batch, the same in every epoch.
        """
        drawn = self.drawn(epoch, sum(sizes))
        start = 0
        for size in sizes:
            yield drawn[start : start + size]
            start += size

    def drawn(self, epoch: int, count: int) -> Positions:
        """Returns the images of an epoch in order, (count,) int64.

        Args:
            epoch: the number of the epoch, at least 1.
            count: how many images an epoch draws.
        """
        start, stop = (epoch - 1) * count, epoch * count
        passes = range(start // self.images, (stop - 1) // self.images + 1)
        order = np.concatenate([_permutation(self.seed, number, self.images) for number in passes])
        first = start - passes[0] * self.images
        return order[first : first + count]


@functools.lru_cache(maxsize=2)  # an epoch usually ends within a pass, which the next one goes on with
def _permutation(seed: int, number: int, images: int) -> Positions:
    return np.random.default_rng(derive_seed(seed, "transfer", number)).permutation(images)
