"""Data sets by name: MNIST in the package, downloads, and the user's own files and functions."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.checks import assemble
from kdtrain.data.cifar import ARCHIVES, load_cifar
from kdtrain.data.dataset import Dataset
from kdtrain.data.download import default_cache_dir, download
from kdtrain.data.factory import load_factory
from kdtrain.data.folder import load_image_files
from kdtrain.data.idx import content_sha256, read_idx
from kdtrain.data.npz import load_npz
from kdtrain.errors import DataError, UsageError, unknown_name_message
from kdtrain.runtime.locations import missing_path_text

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


class IdxDataset(NamedTuple):
    """A published data set of four IDX files.

    Attributes:
        classes: the classes' names.
        sha256: of the unzipped files (hex), in the order of FILES.
        zipped_sha256: of the gzipped files that are downloaded (hex), in the same order.
        mirrors: addresses that the names of the gzipped files are appended to.
    """

    classes: tuple[str, ...]
    sha256: tuple[str, ...]
    zipped_sha256: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()


DATASETS = {
    "mnist": IdxDataset(
        classes=tuple("0123456789"),
        sha256=(
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    "fashion_mnist": IdxDataset(
        classes=(
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        sha256=(
            "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
            "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
            "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
            "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
        ),
        zipped_sha256=(
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
        ),
        mirrors=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",  # the authors' server
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
    ),
}
BUILT_IN = (*DATASETS, *ARCHIVES)
"""The plain names: the only data sets that are read because a file names them."""

SPELLINGS = (*BUILT_IN, "folder:DIR", "csv:FILE", "npz:FILE", "MODULE:FACTORY", "FILE.py:FACTORY")
"""The values of ``--dataset``."""


class _Options(NamedTuple):
    """The arguments of ``load_dataset`` besides the name."""

    data_dir: Path | None
    cache: Path
    image_size: int | None
    skip_corrupt: bool
    most_images: int | None


def load_dataset(
    name: str = "mnist",
    data_dir: Path | None = None,
    cache_dir: Path | None = None,
    *,
    image_size: int | None = None,
    skip_corrupt: bool = False,
    most_images: int | None = None,
) -> Dataset:
    """Returns a data set, complete and checked.

    Args:
        name: one of SPELLINGS. MNIST is part of the package; the other plain names are downloaded once.
        data_dir: a folder to read instead of the package's or the downloaded files. It holds CIFAR's
            archive, or the four files of FILES, plain or with ``.gz``, of any image size and number of
            classes. Published IDX files are recognised by content; others are named after the folder.
        cache_dir: the folder of downloads; by default ``kdtrain`` in the user's cache folder.
        image_size: height and width, in pixels, that image files are scaled to.
        skip_corrupt: leaves out image files that cannot be read.
        most_images: how many image files of each split are read; all by default.

    Raises:
        UsageError: there is no data set of that name, or it contradicts the other arguments.
        DataError: files are missing, damaged or inconsistent, or cannot be downloaded.
        KdtrainError: a factory cannot be imported, or fails.
    """
    options = _Options(data_dir, cache_dir or default_cache_dir(), image_size, skip_corrupt, most_images)
    _check(name, options)
    kind, colon, value = name.partition(":")
    loader = _LOADERS.get(kind + colon)
    return loader(value or name, options) if loader else load_factory(name)


def of_image_files(name: str) -> bool:
    """Returns whether a value of ``--dataset`` names image files, which may have any size."""
    return name.startswith(("folder:", "csv:"))


def verify_embedded() -> list[tuple[str, bool]]:
    """Returns each file of the embedded MNIST, and whether its checksum is right."""
    return [(file, _is_intact(file)) for file in FILES]


def _check(name: str, options: _Options) -> None:
    """Raises UsageError unless ``name`` is one of SPELLINGS and takes all of the options."""
    kind, colon, value = name.partition(":")
    if not colon and name not in BUILT_IN:
        suffix = os.path.splitext(name)[1]
        kind = "folder" if os.path.isdir(name) else {".npz": "npz", ".csv": "csv"}.get(suffix, "")
        remedy = f" To read it, use --dataset {kind}:{name}." if kind else ""
        raise UsageError(unknown_name_message("data set", name, SPELLINGS) + remedy)
    if colon and not value:
        raise UsageError(f"--dataset {name}: expected KIND:VALUE, and the value is missing.")
    if (options.image_size is not None or options.skip_corrupt) and not of_image_files(name):
        flag = "--skip-corrupt" if options.image_size is None else "--image-size"
        raise UsageError(f"{flag} is for image files, --dataset folder:DIR or csv:FILE; this is {name}.")
    if colon and options.data_dir is not None:
        raise UsageError(
            f"--data-dir {options.data_dir} and --dataset {name} exclude each other: leave one of them out."
        )


def _load_mnist(name: str, options: _Options) -> Dataset:
    if options.data_dir is not None:
        return _load_idx_folder(options.data_dir)
    arrays = [_read_embedded(file) for file in FILES]
    return assemble(name, arrays, FILES, DATASETS[name].classes)


def _load_fashion_mnist(name: str, options: _Options) -> Dataset:
    if options.data_dir is not None:
        return _load_idx_folder(options.data_dir)
    published, folder = DATASETS[name], options.cache / name
    files = [f"{file}.gz" for file in FILES]
    download(name, dict(zip(files, published.zipped_sha256, strict=True)), published.mirrors, folder)
    remedy = f"Delete {folder} and run again."
    paths = [folder / file for file in files]
    arrays = [
        _read_checked(path, sha256, remedy) for path, sha256 in zip(paths, published.sha256, strict=True)
    ]
    return assemble(name, arrays, [str(path) for path in paths], published.classes)


_LOADERS: dict[str, Callable[[str, _Options], Dataset]] = {
    "mnist": _load_mnist,
    "fashion_mnist": _load_fashion_mnist,
    **dict.fromkeys(ARCHIVES, lambda name, options: load_cifar(name, options.data_dir, options.cache)),
    "folder:": lambda folder, options: load_image_files("folder", Path(folder), *options[1:]),
    "csv:": lambda table, options: load_image_files("csv", Path(table), *options[1:]),
    "npz:": lambda path, options: load_npz(Path(path)),
}
"""By the name up to its colon. A name with any other text before the colon is that of a factory."""


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
        raise DataError(
            f"--data-dir {missing_path_text(folder)} cannot be read: {error.strerror}."
        ) from error
    missing = [file for file in FILES if not present & {file, f"{file}.gz"}]
    if missing:
        raise DataError(f"--data-dir {folder} lacks {', '.join(missing)} (plain or with .gz).")
    paths = [folder / (file if file in present else f"{file}.gz") for file in FILES]
    arrays = [read_idx(path) for path in paths]
    sources = [str(path) for path in paths]
    for name, published in DATASETS.items():
        # Labels are small, so they are hashed first: unknown data are dismissed before images are hashed.
        pairs = zip(reversed(arrays), reversed(published.sha256), strict=True)
        if all(content_sha256(array) == sha256 for array, sha256 in pairs):
            return assemble(name, arrays, sources, published.classes)
    for array, path, dimensions in zip(arrays, paths, (3, 1, 3, 1), strict=True):
        if array.ndim != dimensions:
            wanted = "images have 3 (count, height, width)" if dimensions == 3 else "labels have 1"
            raise DataError(f"{path} has {array.ndim} dimensions; {wanted}.")
    return assemble(folder.resolve().name or "data", arrays, sources, classes=None)
