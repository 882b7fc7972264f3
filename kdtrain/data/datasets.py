"""Data sets in memory: reading, checking, normalising and splitting them."""

from __future__ import annotations

import hashlib
import math
import os
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdtrain.data import fashion
from kdtrain.data.idx import content_sha256, read_idx
from kdtrain.errors import DataError, UsageError, no_such

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
LARGEST_SIDE = 64
_HOLD_OUT = 0x56414C  # a stream of random numbers of its own: the choice depends on no other use of the seed


class Known(NamedTuple):
    """What is known about a published data set."""

    classes: tuple[str, ...]
    sha256: tuple[str, ...]  # of the unzipped files, in the order of FILES


DATASETS = {
    "mnist": Known(
        classes=tuple("0123456789"),
        sha256=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": Known(classes=fashion.CLASSES, sha256=fashion.CONTENT_SHA256),
}


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


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split of the same classes and image shape."""

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]

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
        """SHA-256 (hex) over shapes and bytes of both splits: equal if and only if the data are."""
        digest = hashlib.sha256()
        for split in (self.train, self.test):
            for array in (split.images, split.labels.astype("<i8")):
                digest.update(repr(array.shape).encode())
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


def load_dataset(name: str = "mnist", data_dir: Path | None = None, cache_dir: Path | None = None) -> Dataset:
    """Returns a data set, complete and checked.

    Args:
        name: ``"mnist"`` (part of the package) or ``"fashion_mnist"`` (downloaded once).
        data_dir: a folder to read instead, holding the four files of FILES, plain or with ``.gz``:
            any image size up to 64x64, any number of classes. Known data are recognised by content;
            others are named after the folder.
        cache_dir: where downloads are kept; by default ``kdtrain`` in the user's cache folder.

    Raises:
        UsageError: there is no data set of that name.
        DataError: files are missing, damaged or inconsistent, or cannot be downloaded.
    """
    if name not in DATASETS:
        raise UsageError(no_such("data set", name, DATASETS))
    if data_dir is not None:
        return _load_folder(data_dir)
    if name == "fashion_mnist":
        folder = fashion.fetch_fashion_mnist(cache_dir or fashion.default_cache_dir())
        remedy = f"Delete {folder} and run again."
        paths = [folder / f"{file}.gz" for file in FILES]
        arrays = [
            _read_checked(path, sha256, remedy)
            for path, sha256 in zip(paths, DATASETS[name].sha256, strict=True)
        ]
        return _assemble(name, arrays, paths, DATASETS[name].classes)
    arrays = [_read_embedded(file) for file in FILES]
    return _assemble(name, arrays, [Path(file) for file in FILES], DATASETS[name].classes)


def verify_embedded() -> list[tuple[str, bool]]:
    """Returns each file of the embedded MNIST, and whether its checksum is right."""
    return [(file, _is_intact(file)) for file in FILES]


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
    for start in range(0, len(pixels), 1000):  # bincount widens its input to 8 bytes a pixel
        counts += np.bincount(pixels[start : start + 1000].ravel(), minlength=256)
    return counts.tolist()  # type: ignore[no-any-return]


def _read_embedded(file: str) -> NDArray[np.uint8]:
    sha256 = DATASETS["mnist"].sha256[FILES.index(file)]
    with resources.as_file(resources.files("kdtrain.data") / "mnist" / f"{file}.gz") as path:
        return _read_checked(path, sha256, "Install kdtrain again.")


def _is_intact(file: str) -> bool:
    try:
        _read_embedded(file)
    except DataError:
        return False
    return True


def _read_checked(path: Path, sha256: str, remedy: str) -> NDArray[np.uint8]:
    try:
        array = read_idx(path)
    except DataError as error:
        raise DataError(f"{error} {remedy}") from error
    if content_sha256(array) != sha256:
        raise DataError(f"{path} has the wrong checksum: its content is not the published one. {remedy}")
    return array


def _load_folder(folder: Path) -> Dataset:
    try:
        present = set(os.listdir(folder))
    except OSError as error:
        raise DataError(f"--data-dir {folder} cannot be read: {error.strerror}.") from error
    missing = [file for file in FILES if not present & {file, f"{file}.gz"}]
    if missing:
        raise DataError(f"--data-dir {folder} lacks {', '.join(missing)} (plain or with .gz).")
    paths = [folder / (file if file in present else f"{file}.gz") for file in FILES]
    arrays = [read_idx(path) for path in paths]
    for name, known in DATASETS.items():
        # The labels come last and are small: whatever is unknown is dismissed before images are hashed.
        pairs = zip(reversed(arrays), reversed(known.sha256), strict=True)
        if all(content_sha256(array) == sha256 for array, sha256 in pairs):
            return _assemble(name, arrays, paths, known.classes)
    return _assemble(folder.resolve().name or "data", arrays, paths, classes=None)


def _assemble(
    name: str, arrays: list[NDArray[np.uint8]], paths: list[Path], classes: tuple[str, ...] | None
) -> Dataset:
    """Checks the four arrays (in the order of FILES) against each other; ``paths`` are for messages."""
    train = _make_split(arrays[0], arrays[1], paths[0], paths[1])
    test = _make_split(arrays[2], arrays[3], paths[2], paths[3])
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = [f"{split.images.shape[2]}x{split.images.shape[3]}" for split in (train, test)]
        raise DataError(
            f"training and test images differ in size: {sizes[0]} in {paths[0]}, {sizes[1]} in {paths[2]}."
        )
    highest = int(train.labels.max())
    if highest == 0:
        raise DataError(f"{paths[1]} knows one class only: all its labels are 0; at least two are needed.")
    strangers = np.flatnonzero(test.labels > highest)
    if len(strangers):
        raise DataError(
            f"{paths[3]}: label {test.labels[strangers[0]]} of image {strangers[0]} is out of range: "
            f"the training labels go from 0 to {highest}."
        )
    return Dataset(name, train, test, classes or tuple(str(label) for label in range(highest + 1)))


def _make_split(images: NDArray[np.uint8], labels: NDArray[np.uint8], *paths: Path) -> Split:
    if images.ndim != 3:
        raise DataError(f"{paths[0]} has {images.ndim} dimensions; images have 3 (count, height, width).")
    if labels.ndim != 1:
        raise DataError(f"{paths[1]} has {labels.ndim} dimensions; labels have 1.")
    if len(images) != len(labels):
        raise DataError(f"{paths[0]} holds {len(images)} images, but {paths[1]} {len(labels)} labels.")
    if len(images) == 0:
        raise DataError(f"{paths[0]} is empty: it holds no image.")
    count, height, width = images.shape
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        raise DataError(f"{paths[0]} holds images of {height}x{width}; kdtrain takes 1x1 to 64x64 pixels.")
    return Split(images.reshape(count, 1, height, width), labels.astype(np.int64))
