"""Data sets by name: MNIST in the package, downloads, and whatever users bring along."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdtrain.data import cifar, fashion
from kdtrain.data.checks import assemble
from kdtrain.data.dataset import Dataset
from kdtrain.data.factory import load_factory
from kdtrain.data.folder import load_image_folder
from kdtrain.data.idx import content_sha256, read_idx
from kdtrain.data.npz import load_npz
from kdtrain.errors import DataError, UsageError, unknown_name_message
from kdtrain.runtime.locations import sought

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class Known(NamedTuple):
    """What is known about a published data set in IDX files."""

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
BUILT_IN = (*DATASETS, *cifar.NAMES)
"""Those with a plain name. What a file names is read if it is one of these, and no other."""

SPELLINGS = (*BUILT_IN, "folder:DIR", "npz:FILE", "MODULE:FACTORY", "FILE.py:FACTORY")
"""What ``--dataset`` accepts."""


def load_dataset(
    name: str = "mnist",
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    *,
    image_size: int | None = None,
    skip_corrupt: bool = False,
    most_pictures: int | None = None,
) -> Dataset:
    """Returns a data set, complete and checked.

    Args:
        name: one of SPELLINGS. MNIST is part of the package, the others with a plain name are
            downloaded once.
        data_dir: a folder to read instead of the package's or the downloaded files: the four files of
            FILES, plain or with ``.gz`` (any image size, any number of classes; known data are
            recognised by content, others are named after the folder), or CIFAR's archive.
        cache_dir: where downloads are kept; by default ``kdtrain`` in the user's cache folder.
        image_size: height and width to which the pictures of a ``folder:DIR`` are brought.
        skip_corrupt: leaves out pictures of a ``folder:DIR`` that cannot be read.
        most_pictures: how many of a ``folder:DIR`` are enough, of each split.

    Raises:
        UsageError: there is no data set of that name, or it does not go with the other arguments.
        DataError: files are missing, damaged or inconsistent, or cannot be downloaded.
        KdtrainError: a factory cannot be imported, or fails.
    """
    kind, colon, rest = name.partition(":")
    if not colon and name not in BUILT_IN:
        kind = "folder" if os.path.isdir(name) else "npz" if name.endswith(".npz") else ""
        meant = f" For what lies there, write --dataset {kind}:{name}." if kind else ""
        raise UsageError(unknown_name_message("data set", name, SPELLINGS) + meant)
    if colon and not rest:
        raise UsageError(f"--dataset {name} lacks what should stand behind the colon.")
    if (image_size is not None or skip_corrupt) and kind != "folder":
        flag = "--skip-corrupt" if image_size is None else "--image-size"
        raise UsageError(f"{flag} is for pictures in a folder, --dataset folder:DIR; this is {name}.")
    if colon and data_dir is not None:
        raise UsageError(f"--data-dir {data_dir} does not go with --dataset {name}: leave one of them out.")
    cache = cache_dir or fashion.default_cache_dir()
    if kind == "folder":
        return load_image_folder(
            Path(rest), cache, image_size=image_size, skip_corrupt=skip_corrupt, most_pictures=most_pictures
        )
    if kind == "npz":
        return load_npz(Path(rest))
    if colon:
        return load_factory(name)
    if name in cifar.NAMES:
        return cifar.load_cifar(name, data_dir, cache)
    if data_dir is not None:
        return _load_idx_folder(data_dir)
    if name == "fashion_mnist":
        return _load_fashion_mnist(cache)
    arrays = [_read_embedded(file) for file in FILES]
    return assemble(name, arrays, FILES, DATASETS[name].classes)


def verify_embedded() -> list[tuple[str, bool]]:
    """Returns each file of the embedded MNIST, and whether its checksum is right."""
    return [(file, _is_intact(file)) for file in FILES]


def _load_fashion_mnist(cache: Path) -> Dataset:
    folder = fashion.fetch_fashion_mnist(cache)
    remedy = f"Delete {folder} and run again."
    known = DATASETS["fashion_mnist"]
    paths = [folder / f"{file}.gz" for file in FILES]
    arrays = [_read_checked(path, sha256, remedy) for path, sha256 in zip(paths, known.sha256, strict=True)]
    return assemble("fashion_mnist", arrays, [str(path) for path in paths], known.classes)


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


def _load_idx_folder(folder: Path) -> Dataset:
    try:
        present = set(os.listdir(folder))
    except OSError as error:
        raise DataError(f"--data-dir {sought(folder)} cannot be read: {error.strerror}.") from error
    missing = [file for file in FILES if not present & {file, f"{file}.gz"}]
    if missing:
        raise DataError(f"--data-dir {folder} lacks {', '.join(missing)} (plain or with .gz).")
    paths = [folder / (file if file in present else f"{file}.gz") for file in FILES]
    arrays = [read_idx(path) for path in paths]
    sources = [str(path) for path in paths]
    for name, known in DATASETS.items():
        # The labels come last and are small: whatever is unknown is dismissed before images are hashed.
        pairs = zip(reversed(arrays), reversed(known.sha256), strict=True)
        if all(content_sha256(array) == sha256 for array, sha256 in pairs):
            return assemble(name, arrays, sources, known.classes)
    for array, path, dimensions in zip(arrays, paths, (3, 1, 3, 1), strict=True):
        if array.ndim != dimensions:
            wanted = "images have 3 (count, height, width)" if dimensions == 3 else "labels have 1"
            raise DataError(f"{path} has {array.ndim} dimensions; {wanted}.")
    return assemble(folder.resolve().name or "data", arrays, sources, classes=None)
