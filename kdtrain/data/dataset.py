"""What a data set is: images and labels, with their statistics."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from kdtrain.errors import UsageError
from kdtrain.runtime.limits import MOST_PIXELS
from kdtrain.runtime.slices import in_slices

_HOLD_OUT = 0x56414C  # a stream of random numbers of its own: the choice depends on no other use of the seed


@dataclass(frozen=True)
class Normalization:
    """Brings pixels to mean 0 and standard deviation 1 over the training images.

    Attributes:
        mean: per channel, of pixels divided by 255.
        std: per channel, of pixels divided by 255.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def apply(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Returns ``(images / 255 - mean) / std``.

        Args:
            images: uint8 (N, C, H, W).

        Returns:
            A new contiguous float32 array (N, C, H, W), which nobody else writes to.
        """
        std = np.array(self.std).reshape(-1, 1, 1)
        mean = np.array(self.mean).reshape(-1, 1, 1)
        normalized = images.astype(np.float32, order="C")
        normalized *= (1 / (255 * std)).astype(np.float32)
        normalized -= (mean / std).astype(np.float32)
        return normalized

    @property
    def background(self) -> tuple[float, ...]:
        """The value of a black pixel, per channel."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))


@dataclass(frozen=True, eq=False)
class Normalized:
    """Images that are normalised anew whenever they are asked for, because they are too many as floats.

    Attributes:
        images: uint8 (M, C, H, W), in memory or in a file.
        rows: (N,) which of them these are.
        normalization: what is done to them.
    """

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    normalization: Normalization

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self.rows), *self.images.shape[1:])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, indices: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        return self.normalization.apply(self.images[self.rows[indices]])

    def __array__(self) -> NDArray[np.float32]:
        return self[:]


@dataclass(frozen=True, eq=False)
class Split:
    """Images with their labels; nobody writes into the arrays.

    Attributes:
        images: uint8 (N, C, H, W).
        labels: int64 (N,).
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, indices: NDArray[np.int64]) -> Split:
        """Returns a new split of the images at ``indices`` (M,), in that order."""
        return Split(self.images[indices], self.labels[indices])

    def normalized(
        self, normalization: Normalization, indices: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32] | Normalized:
        """Returns the images (at ``indices``), normalised at once if they all fit in memory as floats."""
        if self.images.size > MOST_PIXELS:
            return Normalized(
                self.images, np.arange(len(self)) if indices is None else indices, normalization
            )
        return normalization.apply(self.images if indices is None else self.images[indices])


@dataclass(frozen=True, eq=False)
class Dataset:
    """Splits of the same classes and image shape.

    Attributes:
        name: what ``--dataset`` calls it, or the folder of ``--data-dir``.
        train: to train on; the validation images are drawn from it where there are no others.
        test: read once, at the end.
        classes: their names; labels are positions in it.
        validation: images to choose by, where the data bring them along.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    validation: Split | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes; labels are 0 to one less."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    @cached_property
    def normalization(self) -> Normalization:
        """The statistics of the whole training split, so that a held-out part changes nothing.

        Computed in whole numbers from how often each pixel value occurs, hence exact. A channel
        whose pixels are all equal gets a standard deviation of 1.
        """
        mean, std = [], []
        for channel in range(self.image_shape[0]):
            counts = _count_values(self.train.images[:, channel])
            number = sum(counts)
            total = sum(value * count for value, count in enumerate(counts))
            squares = sum(value * value * count for value, count in enumerate(counts))
            mean.append(total / (255 * number))
            std.append(math.sqrt(number * squares - total * total) / (255 * number) or 1.0)
        return Normalization(tuple(mean), tuple(std))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) over shapes and bytes of training and test split: equal if and only if these are."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for array in (split.images, split.labels.astype("<i8")):
                digest.update(repr(array.shape).encode())
                for few in in_slices(array.shape):
                    digest.update(np.ascontiguousarray(array[few]).data)
        return digest.hexdigest()


def hold_out(train: Split, size: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws ``size`` validation images from the training split.

    Returns:
        Two sorted index arrays that share nothing and together cover ``train``: those to train on,
        those to validate on. The same seed and size give the same images.

    Raises:
        UsageError: ``size`` is negative or leaves nothing to train on.
    """
    if not 0 <= size < len(train):
        raise UsageError(
            f"--val-size {size}: give 0 to {len(train) - 1}, because there are {len(train)} training images."
        )
    order = np.random.default_rng([seed, _HOLD_OUT]).permutation(len(train))
    return np.sort(order[size:]), np.sort(order[:size])


def _count_values(pixels: NDArray[np.uint8]) -> list[int]:
    counts = np.zeros(256, np.int64)
    for few in in_slices(pixels.shape):  # bincount widens its input to 8 bytes a pixel
        counts += np.bincount(pixels[few].ravel(), minlength=256)
    return counts.tolist()  # type: ignore[no-any-return]
