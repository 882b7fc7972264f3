"""Data sets in memory: splits of images and labels, with their statistics."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdtrain.errors import UsageError, size_text
from kdtrain.runtime.limits import MOST_PIXELS, in_slices

_HOLD_OUT = 0x56414C  # a separate stream of random numbers, independent of other uses of the seed


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
            images: (N, C, H, W) uint8.

        Returns:
            A new contiguous array, (N, C, H, W) float32.
        """
        std = np.array(self.std).reshape(-1, 1, 1)
        mean = np.array(self.mean).reshape(-1, 1, 1)
        normalized = images.astype(np.float32, order="C")
        normalized *= (1 / (255 * std)).astype(np.float32)
        normalized -= (mean / std).astype(np.float32)
        return normalized

    @property
    def background(self) -> tuple[float, ...]:
        """The normalised value of a black pixel, per channel."""
        return tuple(-mean / std for mean, std in zip(self.mean, self.std, strict=True))


class LazyImages:
    """Images that are made each time they are read, because they do not fit in memory as floats."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        raise NotImplementedError

    def __getitem__(self, indices: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        """Returns some images, (B, C, H, W), as a new array."""
        raise NotImplementedError

    def first(self, count: int) -> LazyImages:
        """Returns the first images alone."""
        raise NotImplementedError

    def __len__(self) -> int:
        return self.shape[0]

    def __array__(self) -> NDArray[np.float32]:
        return self[:]

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {_images_text(self.shape)}>"


@dataclass(frozen=True, eq=False, repr=False)
class Normalized(LazyImages):
    """Images that are normalised each time they are read.

    Attributes:
        images: (M, C, H, W) uint8, in memory or in a file.
        rows: (N,) int64, the indices of the images in this selection.
        normalization: is applied to each image.
    """

    images: NDArray[np.uint8]
    rows: NDArray[np.int64]
    normalization: Normalization

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, C, H, W)."""
        return (len(self.rows), *self.images.shape[1:])

    def __getitem__(self, indices: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        return self.normalization.apply(self.images[self.rows[indices]])

    def first(self, count: int) -> Normalized:
        """Returns the first images of the selection."""
        return Normalized(self.images, self.rows[:count], self.normalization)


@dataclass(frozen=True, eq=False, repr=False)
class Joined(Normalized):
    """Images of a selection, followed by images without labels, normalised when they are read.

    Attributes:
        others: K images.
    """

    others: Unlabelled

    @property
    def _all(self) -> Unlabelled:
        return Unlabelled("", self.images, self.rows, self.others)

    @property
    def shape(self) -> tuple[int, ...]:
        """(N + K, C, H, W)."""
        return self._all.shape

    def __getitem__(self, indices: slice | NDArray[np.int64]) -> NDArray[np.float32]:
        return self.normalization.apply(self._all[indices])


class PictureFile(NamedTuple):
    """A file that an image was decoded from, as it was then: its size in bytes, its time of change in ns."""

    path: Path
    size: int
    changed: int


@dataclass(frozen=True, eq=False, repr=False)
class Unlabelled:
    """Images without labels, for which only a teacher has an output.

    Attributes:
        name: the file, folder or data set that they come from.
        images: (M, C, H, W) uint8, of the shape of a data set's images, in memory or in a file.
        rows: (K,) int64, the images of the array that these are; all by default.
        more: images without labels from elsewhere, which follow these.
        files: the M files of the array's images; empty for images that were no files.
    """

    name: str
    images: NDArray[np.uint8]
    rows: NDArray[np.int64] | None = None
    more: Unlabelled | None = None
    files: tuple[PictureFile, ...] = ()

    def __len__(self) -> int:
        return self._own + len(self.more or ())

    @property
    def _own(self) -> int:
        return len(self.images if self.rows is None else self.rows)

    @property
    def shape(self) -> tuple[int, ...]:
        """(K, C, H, W), with those that follow."""
        return (len(self), *self.images.shape[1:])

    @property
    def own_files(self) -> list[PictureFile | None]:
        """The file of each of the K images; None for an image that was no file."""
        own = files_of(self.files, range(len(self.images)) if self.rows is None else self.rows)
        return own if self.more is None else own + self.more.own_files

    def __getitem__(self, indices: slice | NDArray[np.int64]) -> NDArray[np.uint8]:
        positions = np.arange(len(self))[indices]
        images = np.empty((len(positions), *self.images.shape[1:]), np.uint8)
        own = positions < self._own
        chosen = positions[own]
        images[own] = self.images[chosen if self.rows is None else self.rows[chosen]]
        if self.more is not None:
            images[~own] = self.more[positions[~own] - self._own]
        return images

    def __repr__(self) -> str:
        return f"<Unlabelled {self.name}: {_images_text(self.shape)}>"

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of shape and bytes."""
        return array_digest([self])

    @cached_property
    def digests(self) -> NDArray[np.uint64]:
        """(K,) uint64, as those of a ``Split``."""
        return _image_digests(self)


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Images with their labels. No code writes into the arrays.

    Attributes:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.
        names: the N file names, relative to the data's folder; empty for images that were no files.
        files: the N files; empty for images that were no files.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...] = ()
    files: tuple[PictureFile, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        return f"<Split {_images_text(self.images.shape)}>"

    @cached_property
    def digests(self) -> NDArray[np.uint64]:
        """(N,) uint64, 64 bits of the SHA-256 of each image: equal for copies, pixel by pixel."""
        return _image_digests(self.images)

    def take(self, indices: NDArray[np.int64]) -> Split:
        """Returns a new split of the images at ``indices``, (M,) int64, in that order."""
        names = tuple(self.names[index] for index in indices.tolist()) if self.names else ()
        files = tuple(self.files[index] for index in indices.tolist()) if self.files else ()
        return Split(self.images[indices], self.labels[indices], names, files)

    def normalized(
        self, normalization: Normalization, indices: NDArray[np.int64] | None = None
    ) -> NDArray[np.float32] | Normalized:
        """Returns the normalised images, as an array if all images of the split fit in memory as floats.

        Args:
            normalization: is applied to each image.
            indices: (M,) int64, the images that are returned; all by default.

        Returns:
            (M, C, H, W) float32, or an object that normalises the images when they are read.
        """
        if self.images.size > MOST_PIXELS:
            return Normalized(
                self.images, np.arange(len(self)) if indices is None else indices, normalization
            )
        return normalization.apply(self.images if indices is None else self.images[indices])

    def joined(
        self, normalization: Normalization, indices: NDArray[np.int64], others: Unlabelled
    ) -> NDArray[np.float32] | Joined:
        """Returns normalised images of this split, followed by other images, as ``normalized`` does.

        Args:
            normalization: is applied to each image.
            indices: (M,) int64, the images of this split.
            others: the other images, K of them.

        Returns:
            (M + K, C, H, W) float32, or an object that normalises the images when they are read.
        """
        both = Joined(self.images, indices, normalization, others)
        return both if max(self.images.size, math.prod(both.shape)) > MOST_PIXELS else both[:]


@dataclass(frozen=True, eq=False, repr=False)
class Dataset:
    """Splits of the same classes and image shape.

    Attributes:
        name: the value of ``--dataset``, or the name of the folder of ``--data-dir``.
        train: the training images; without ``validation``, the validation images are drawn from them.
        test: the test images, which are used once, at the end.
        classes: the names of the classes; a label is a position in them.
        validation: the validation images, if the data have their own.
        transfer: images without labels, for students with a teacher; None without any.
        without_labels: how many images of the training split have lost their labels to ``--labels``. They are
            the first ones of ``transfer``, if there is a teacher to use them.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    validation: Split | None = None
    transfer: Unlabelled | None = None
    without_labels: int = 0

    def __repr__(self) -> str:
        splits = {"training": self.train, "validation": self.validation, "test": self.test}
        numbers = ", ".join(f"{len(split):,} {name}" for name, split in splits.items() if split is not None)
        unlabelled = "" if self.transfer is None else f", {len(self.transfer):,} without labels"
        size, classes = size_text(self.image_shape), self.num_classes
        return f"<Dataset {self.name}: {numbers} images of {size} in {classes} classes{unlabelled}>"

    @property
    def num_classes(self) -> int:
        """The number of classes; labels go from 0 to ``num_classes`` - 1."""
        return len(self.classes)

    def split(self, name: str) -> Split:
        """Returns the split ``train``, ``validation`` or ``test``; the first and the last always exist."""
        split: Split | None = getattr(self, name)
        if split is None:
            raise ValueError(f"{self.name} has no split {name!r}")
        return split

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width

    @cached_property
    def normalization(self) -> Normalization:
        """The statistics of the whole training split, whatever part of it is held out.

        They are exact: whole numbers are added up, from a histogram of the pixel values. A channel
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
        """SHA-256 (hex) of shapes and bytes of the training and the test split."""
        splits = (self.train, self.test)
        return array_digest(
            [array for split in splits for array in (split.images, split.labels.astype("<i8"))]
        )


def hold_out(
    train: Split, size: int, seed: int, *, by_class: bool = False
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Draws a validation set from the training split.

    Args:
        train: the training split, of N images.
        size: the number of validation images, M.
        seed: the same seed and size give the same images.
        by_class: draws equally from each class, and leaves an image of each to train on.

    Returns:
        The sorted indices of the images to train on, (N - M,) int64, and to validate on, (M,) int64.

    Raises:
        UsageError: ``size`` is negative or leaves no image to train on.
    """
    if not 0 <= size < len(train):
        images = "training images with labels" if by_class else "training images"
        raise UsageError(
            f"--val-size {size}: give 0 to {len(train) - 1}, because there are {len(train)} {images}."
        )
    random = np.random.default_rng([seed, _HOLD_OUT])
    if by_class:
        order = class_by_class(train.labels, random)
        order = np.roll(order, -len(np.unique(train.labels)))  # the first image of each class comes last
    else:
        order = random.permutation(len(train))
    return np.sort(order[size:]), np.sort(order[:size])


def class_by_class(labels: NDArray[np.int64], random: np.random.Generator) -> NDArray[np.int64]:
    """Returns a random order that takes one image of each class by turns, while the class has any.

    Args:
        labels: (N,) int64.
        random: draws the order.

    Returns:
        (N,) int64, the positions of all images.
    """
    order = random.permutation(len(labels))
    by_label = order[np.argsort(labels[order], kind="stable")]
    first = np.searchsorted(labels[by_label], labels[by_label])  # where the class of each begins
    by_turns: NDArray[np.int64] = by_label[
        np.lexsort((random.permutation(len(labels)), np.arange(len(labels)) - first))
    ]
    return by_turns


def files_of(files: Sequence[PictureFile], rows: Iterable[int]) -> list[PictureFile | None]:
    """Returns the files of some images; None for each if the images were no files."""
    return [files[row] if files else None for row in rows]


def _images_text(shape: tuple[int, ...]) -> str:
    return f"{shape[0]:,} images of {size_text(shape[1:])}"


def _count_values(pixels: NDArray[np.uint8]) -> list[int]:
    counts = np.zeros(256, np.int64)
    for rows in in_slices(pixels.shape):  # bincount widens its input to 8 bytes a pixel
        counts += np.bincount(pixels[rows].ravel(), minlength=256)
    return counts.tolist()  # type: ignore[no-any-return]


def _image_digests(images: NDArray[np.uint8] | Unlabelled) -> NDArray[np.uint64]:
    digests = np.empty(len(images), np.uint64)
    for rows in in_slices(images.shape):
        packed = map(hashlib.sha256, np.ascontiguousarray(images[rows]))
        digests[rows] = np.frombuffer(b"".join(image.digest()[:8] for image in packed), np.uint64)
    return digests


def array_digest(arrays: Sequence[NDArray[np.generic] | LazyImages | Unlabelled]) -> str:
    """Returns the SHA-256 (hex) of shapes and bytes."""
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(repr(array.shape).encode())
        for rows in in_slices(array.shape):
            digest.update(np.ascontiguousarray(array[rows]).data)
    return digest.hexdigest()
