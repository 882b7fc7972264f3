"""The images of an epoch: those without labels that join each batch, and classes drawn equally often."""

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
        return _in_passes(self.seed, self.images, epoch, count)[0]


class BalancedDraw:
    """Draws labelled images such that each class is equally frequent in an epoch, up to one image.

    An epoch has as many images as there are. Each class is drawn in passes over its own images, as images
    without labels are: an image of a small class comes several times, and one of a large class is left out
    now and then, each equally often.

    Args:
        labels: (N,) int64.
        seed: the seed of the permutations.
    """

    def __init__(self, labels: Positions, seed: int) -> None:
        self._seed, self._count = seed, len(labels)
        self._members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
        share, rest = divmod(len(labels), len(self._members))
        self._drawn = [share + (number < rest) for number in range(len(self._members))]

    def epoch(self, epoch: int) -> tuple[Positions, Positions]:
        """Returns the images of an epoch, class by class, and how often each was drawn, this time included.

        Args:
            epoch: the number of the epoch, at least 1.

        Returns:
            Positions, (N,) int64, and whole numbers from 1, (N,) int64.
        """
        images, rounds = [], []
        for number, (members, drawn) in enumerate(zip(self._members, self._drawn, strict=True)):
            seed = derive_seed(self._seed, "balance", number)
            chosen, passes = _in_passes(seed, len(members), epoch, drawn)
            images.append(members[chosen])
            rounds.append(passes + 1)
        return np.concatenate(images), np.concatenate(rounds)

    def rounds(self, epochs: int) -> Positions:
        """Returns how often each image is drawn at most in some epochs, (N,) int64."""
        most = np.empty(self._count, np.int64)
        for members, drawn in zip(self._members, self._drawn, strict=True):
            most[members] = -(-epochs * drawn // len(members))
        return most


def _in_passes(seed: int, images: int, epoch: int, count: int) -> tuple[Positions, Positions]:
    """Returns the positions that an epoch of ``count`` draws takes, and the number of each one's pass."""
    start, stop = (epoch - 1) * count, epoch * count
    passes = range(start // images, (stop - 1) // images + 1)
    order = np.concatenate([_permutation(seed, number, images) for number in passes])
    first = start - passes[0] * images
    return order[first : first + count], np.arange(start, stop) // images


@functools.lru_cache(maxsize=2)  # an epoch usually ends within a pass, which the next one goes on with
def _permutation(seed: int, number: int, images: int) -> Positions:
    return np.random.default_rng(derive_seed(seed, "transfer", number)).permutation(images)
