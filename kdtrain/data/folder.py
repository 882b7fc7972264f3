"""Data sets of picture files in class folders."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.checks import check_classes, check_logits
from kdtrain.data.dataset import Dataset, Split
from kdtrain.data.images.decode_folder import Decoded, decode
from kdtrain.data.images.resize import upright_size
from kdtrain.errors import DataError, UsageError, escape_controls
from kdtrain.runtime.limits import LARGEST_SIDE
from kdtrain.runtime.locations import sought

logger = logging.getLogger(__name__)

_SUFFIXES = {
    ".png",
    ".jpg",
    ".jpeg",
    ".jpe",
    ".jfif",
    ".gif",
    ".bmp",
    ".tif",
    ".tiff",
    ".webp",
    ".ppm",
    ".pgm",
    ".pbm",
}
_PARTS = ("train", "val", "test")
_TEST_SHARE = (
    5  # where there is no test folder, one in so many pictures of each class is for testing, or one at least
)


class Picture(NamedTuple):
    """A file with its class's number."""

    path: Path
    label: int


def load_image_folder(
    folder: Path,
    cache: Path,
    *,
    image_size: int | None = None,
    skip_corrupt: bool = False,
    most_images: int | None = None,
) -> Dataset:
    """Returns the pictures of a folder, each decoded once, in the order of their names.

    ``folder`` holds ``train/CLASS/*`` and perhaps ``val/CLASS/*`` and ``test/CLASS/*``, or only the
    class folders. Where there is no test folder, a fifth of each class is set aside for testing: the
    same pictures for every seed, so that no model is ever tested on what another one has learnt from.
    All are grey if no training picture has any colour.

    Args:
        folder: the folder.
        cache: where pixels are kept while the process lives, if they are too many for the memory.
        image_size: height and width that all are brought to; by default they must all have one size.
        skip_corrupt: leave out, and count, files that cannot be read.
        most_images: how many of each split are read, evenly spread; all by default.

    Raises:
        UsageError: sizes differ and there is no ``image_size``.
        DataError: the folder has no such structure, or a file cannot be read.
    """
    classes, splits = _find(folder)
    check_logits(max(map(len, splits)), len(classes), str(folder))
    if most_images is not None:
        splits = [split[:: -(-len(split) // most_images) or 1] for split in splits]
    pictures = [picture for split in splits for picture in split]
    size = (image_size, image_size) if image_size else _size_of_first(pictures, skip_corrupt)
    if max(size) > LARGEST_SIDE:
        raise UsageError(
            f"{folder}: images of {size[0]}x{size[1]} are too large: choose at most {LARGEST_SIDE} pixels "
            "with --image-size."
        )
    decoded = decode([picture.path for picture in pictures], size, image_size is not None, cache)
    _report(decoded, pictures, folder, skip_corrupt)
    labels = np.array([picture.label for picture in pictures], np.int64)
    ends = np.cumsum([len(split) for split in splits])
    parts = list(_parts(decoded, labels, ends, training=len(splits[0])))
    for name, part in zip(("training", "validation", "test"), parts, strict=True):
        if name != "validation" and len(part) == 0:
            raise DataError(f"{folder} has no {name} picture.")
    train, validation, test = parts
    return Dataset(f"folder:{folder}", train, test, classes, validation if len(validation) else None)


def _parts(
    decoded: Decoded, labels: NDArray[np.int64], ends: NDArray[np.int64], training: int
) -> Iterator[Split]:
    """Yields training, validation and test split, without the files that could not be read."""
    good = np.flatnonzero(decoded.readable)
    pixels = decoded.in_channels(1 if decoded.grey[:training][decoded.readable[:training]].all() else 3)
    if len(good) < len(pixels):
        for target, source in enumerate(good):  # in place: there may be no memory for another copy
            pixels[target] = pixels[source]
    start = 0
    for stop in np.searchsorted(good, ends):
        yield Split(pixels[start:stop], labels[good[start:stop]])
        start = stop


def _find(folder: Path) -> tuple[tuple[str, ...], list[list[Picture]]]:
    """Returns the classes, and the pictures of the training, validation and test split."""
    top = _subfolders(folder)
    lonely = [name for name in _PARTS[1:] if name in top and "train" not in top]
    if lonely:
        raise DataError(f"{folder} has no folder train beside {' and '.join(lonely)}.")
    if "train" in top and set(top) - set(_PARTS):
        unused = ", ".join(sorted(set(top) - set(_PARTS)))
        logger.info(f"{folder}: only the folders {', '.join(_PARTS)} are used, and not {unused}.")
    source = folder / "train" if "train" in top else folder
    classes = tuple(_subfolders(source) if "train" in top else top)
    if len(classes) < 2:
        raise DataError(
            f"{source} has {len(classes)} class folders; it needs one for each class, and two at least."
        )
    check_classes(classes, f"the class folders in {source}")
    train = _pictures(source, classes)
    counts = np.bincount([picture.label for picture in train], minlength=len(classes))
    if counts.min() == 0:
        raise DataError(f"{source / classes[int(counts.argmin())]} holds no picture.")
    validation, test = (
        _pictures(folder / name, classes) if "train" in top and name in top else [] for name in _PARTS[1:]
    )
    if not test:
        train, test = _split_off(train)
    return classes, [train, validation, test]


def _subfolders(folder: Path) -> list[str]:
    return _names(folder, os.DirEntry.is_dir)


def _names(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    """Returns what a folder holds, without hidden files, in order."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name[0] != "." and wanted(entry))
    except OSError as error:
        raise DataError(
            f"{sought(folder)} cannot be read as a folder of pictures: {error.strerror}."
        ) from error


def _pictures(folder: Path, classes: Sequence[str]) -> list[Picture]:
    """Returns the files in the class folders that are pictures by their names, in order."""
    found, others, nested = [], [], []
    labels = {name: label for label, name in enumerate(classes)}
    for name in _subfolders(folder):
        if name not in labels:
            raise DataError(f"{folder / name}: there is no class {name!r} among the training pictures.")
        files = _names(folder / name, os.DirEntry.is_file)
        chosen = {file: os.path.splitext(file)[1].lower() in _SUFFIXES for file in files}
        others += [folder / name / file for file in files if not chosen[file]]
        nested += [folder / name / inner for inner in _subfolders(folder / name)]
        found += [Picture(folder / name / file, labels[name]) for file in files if chosen[file]]
    if others:
        logger.info(f"Left out, as no pictures by their names ({len(others)} in {folder}): {_some(others)}")
    if nested:
        logger.info(f"Left out, as a folder deeper than the rest: {_some(nested)}")
    return found


def _split_off(pictures: list[Picture]) -> tuple[list[Picture], list[Picture]]:
    """Parts a fifth of each class from the rest.

    Which it is depends on the files' names alone, and a new file changes it for one other at most.
    """
    test = set()
    for _, of_class in itertools.groupby(pictures, lambda picture: picture.label):  # they come in this order
        own = list(of_class)
        own.sort(key=lambda picture: hashlib.sha256(os.fsencode(picture.path.name)).digest())
        test.update(own[: max(len(own) // _TEST_SHARE, int(len(own) > 1))])
    return [p for p in pictures if p not in test], [p for p in pictures if p in test]


def _size_of_first(pictures: Sequence[Picture], skip_corrupt: bool) -> tuple[int, int]:
    for picture in pictures:
        try:
            return upright_size(picture.path)
        except DataError as error:
            if not skip_corrupt:
                raise DataError(f"{error} {_REMEDY}") from error
    raise DataError("none of the pictures can be read.")


_REMEDY = "Mend or remove it, or leave out what cannot be read with --skip-corrupt."


def _report(decoded: Decoded, pictures: Sequence[Picture], folder: Path, skip_corrupt: bool) -> None:
    """Raises or notes what could not be read."""
    if not decoded.failures:
        return
    first = decoded.failures[min(decoded.failures)]
    number = len(decoded.failures)
    if isinstance(first, UsageError):
        raise first
    if not skip_corrupt:
        others = f" So it is with {number - 1} others." if number > 1 else ""
        raise DataError(f"{first}{others} {_REMEDY}")
    names = _some([pictures[index].path for index in sorted(decoded.failures)])
    logger.info(f"{number} of {len(pictures)} pictures in {folder} cannot be read, and are left out: {names}")


def _some(paths: Sequence[Path]) -> str:
    """Returns the first of many names."""
    return ", ".join(escape_controls(str(path)) for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
