"""Data sets of image files, in class folders or named in a table."""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.checks import check_classes, check_logits
from kdtrain.data.dataset import Dataset, PictureFile, Split
from kdtrain.data.images.decode_folder import Decoded, decode
from kdtrain.data.images.resize import upright_size
from kdtrain.errors import (
    DataError,
    UsageError,
    clipped,
    did_you_mean,
    escape_controls,
    os_reason,
    size_text,
)
from kdtrain.runtime.limits import LARGEST_SIDE, LARGEST_TABLE
from kdtrain.runtime.locations import missing_path_text
from kdtrain.runtime.regular_files import read_text

logger = logging.getLogger(__name__)

_SUFFIXES = {
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp"),
    *(".tif", ".tiff", ".webp", ".ppm", ".pgm", ".pbm"),
}
_PARTS = ("train", "val", "test")
_TEST_FRACTION = 5  # without a test folder, one in 5 images of each class is for testing
_REMEDY = "Fix or remove it, or leave out unreadable files with --skip-corrupt."


class ImageFile(NamedTuple):
    """An image file and its label; ``place`` begins messages about it with its line in a table."""

    path: Path
    label: int
    place: str = ""


class _Row(NamedTuple):
    """A row of a table of images."""

    place: str
    path: Path
    label: str
    part: str


_Found = tuple[tuple[str, ...], list[list[ImageFile]]]
"""The classes, and the files of the training, validation and test split."""


def load_image_files(
    kind: str,
    source: Path,
    cache: Path,
    image_size: int | None = None,
    skip_corrupt: bool = False,
    most_images: int | None = None,
) -> Dataset:
    """Returns the images of a folder or of a table, each decoded once.

    A folder holds ``train/CLASS/*`` and perhaps ``val/CLASS/*`` and ``test/CLASS/*``, or only the class
    folders. Its images are in the order of their names. A table is a CSV file whose first line names the
    columns: ``path``, relative to the table, ``label``, and perhaps ``split``: train, val or test. Its images
    are in the order of their classes and paths.

    Without images for testing, a fifth of each class becomes the test set. It is the same for every seed,
    so no model is tested on images that another model was trained on. All images are read as grey if no
    training image has a colour.

    Args:
        kind: folder or csv.
        source: the folder, or the table.
        cache: a folder for the pixels while the process runs, if they do not fit in memory.
        image_size: height and width, in pixels, that all images are scaled to; by default all images
            must have the same size.
        skip_corrupt: leaves out, and counts, files that cannot be read.
        most_images: how many images of each split are read, evenly spread; all by default.

    Raises:
        UsageError: sizes differ and there is no ``image_size``.
        DataError: the folder has another structure, a line of the table is wrong, or a file cannot be read.
    """
    classes, splits = _find(source) if kind == "folder" else _find_in_table(source)
    check_logits(max(map(len, splits)), len(classes), str(source))
    if most_images is not None:
        splits = [split[:: -(-len(split) // most_images) or 1] for split in splits]
    files = [file for split in splits for file in split]
    size = (image_size, image_size) if image_size else _size_of_first(files, skip_corrupt)
    if max(size) > LARGEST_SIDE:
        raise UsageError(
            f"{source}: images of {size_text(size)} are too large: choose at most {LARGEST_SIDE} pixels "
            "with --image-size."
        )
    stamped = [stamp(file.path) for file in files]  # before they are read: a later change shows
    decoded = decode([file.path for file in files], size, image_size is not None, cache)
    for index, error in decoded.failures.items():
        decoded.failures[index] = type(error)(f"{files[index].place}{error}")
    report_failures(decoded, [file.path for file in files], source, skip_corrupt)
    ends = np.cumsum([len(split) for split in splits])
    root = source if kind == "folder" else source.parent
    train, validation, test = _parts(decoded, files, stamped, ends, root)
    for part, split in (("training", train), ("test", test)):
        if len(split) == 0:
            raise DataError(f"{source} has no {part} image.")
    return Dataset(f"{kind}:{source}", train, test, classes, validation if len(validation) else None)


def stamp(path: Path) -> PictureFile:
    """Returns a file with its size and time of change; 0 for both if it cannot be found."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return PictureFile(path, 0, 0)
    return PictureFile(path, status.st_size, status.st_mtime_ns)


def _parts(
    decoded: Decoded,
    files: Sequence[ImageFile],
    stamped: Sequence[PictureFile],
    ends: NDArray[np.int64],
    root: Path,
) -> Iterator[Split]:
    """Yields training, validation and test split, without the files that could not be read."""
    readable, training = np.flatnonzero(decoded.readable), int(ends[0])
    labels = np.array([file.label for file in files], np.int64)
    pixels = decoded.in_channels(1 if decoded.grey[:training][decoded.readable[:training]].all() else 3)
    if len(readable) < len(pixels):
        for target, source in enumerate(readable):  # in place: there may be no memory for another copy
            pixels[target] = pixels[source]
    start = 0
    for stop in np.searchsorted(readable, ends):
        of_split = tuple(stamped[index] for index in readable[start:stop].tolist())
        names = tuple(os.path.relpath(file.path, root) for file in of_split)
        yield Split(pixels[start:stop], labels[readable[start:stop]], names, of_split)
        start = stop


def pictures_in(folder: Path) -> list[Path]:
    """Returns the files in a folder whose suffix is that of an image, in order; logs what is left out.

    Raises:
        DataError: the folder cannot be read.
    """
    names, nested = _names(folder, os.DirEntry.is_file), _subfolders(folder)
    pictures = [name for name in names if _is_picture(name)]
    others = [folder / name for name in names if not _is_picture(name)]
    _log_others(folder, others)
    if nested:
        logger.info(f"Left out the folders in {folder}: {_some([folder / name for name in nested])}")
    return [folder / name for name in pictures]


def _find(folder: Path) -> _Found:
    top = _subfolders(folder)
    without_train = [name for name in _PARTS[1:] if name in top and "train" not in top]
    if without_train:
        raise DataError(f"{folder} has no folder train beside {' and '.join(without_train)}.")
    if "train" in top and set(top) - set(_PARTS):
        unused = ", ".join(sorted(set(top) - set(_PARTS)))
        logger.info(f"{folder}: only the folders {', '.join(_PARTS)} are used, not {unused}.")
    source = folder / "train" if "train" in top else folder
    classes = tuple(_subfolders(source) if "train" in top else top)
    if len(classes) < 2:
        raise DataError(
            f"{source} has {len(classes)} class folders: it needs at least two, one for each class."
        )
    check_classes(classes, f"the class folders in {source}")
    train = _image_files(source, classes)
    counts = np.bincount([file.label for file in train], minlength=len(classes))
    if counts.min() == 0:
        raise DataError(f"{source / classes[int(counts.argmin())]} holds no image.")
    validation = _image_files(folder / "val", classes) if {"train", "val"} <= set(top) else []
    test = _image_files(folder / "test", classes) if {"train", "test"} <= set(top) else []
    if not test:
        train, test = _split_off(train)
    return classes, [train, validation, test]


def _find_in_table(table: Path) -> _Found:
    rows = list(_rows(table))
    lines: dict[str, str] = {}
    shown: set[str] = set()
    for row in rows:
        first = lines.setdefault(os.path.abspath(row.path), row.place)
        if first != row.place:
            raise DataError(f"{row.place}{row.path} is named twice, before in {first.removesuffix(': ')}.")
    classes = tuple(sorted({row.label for row in rows if row.part == "train"}))
    if len(classes) < 2:
        raise DataError(f"{table} has {len(classes)} classes of training images: it needs at least two.")
    for row in rows:
        if row.label not in shown:
            shown.update(check_classes([row.label], row.place.removesuffix(": ")) or ())
    check_classes(classes, f"the labels in {table}")
    labels = {name: label for label, name in enumerate(classes)}
    splits: dict[str, list[ImageFile]] = {part: [] for part in _PARTS}
    for row in rows:
        if row.label not in labels:
            raise DataError(f"{row.place}no training image has the label {clipped(row.label, repr)}.")
        splits[row.part].append(ImageFile(row.path, labels[row.label], row.place))
    train, validation, test = (
        sorted(splits[part], key=lambda file: (file.label, file.path)) for part in _PARTS
    )
    if not test:
        train, test = _split_off(train)
    return classes, [train, validation, test]


def _rows(table: Path) -> Iterator[_Row]:
    """Yields the rows of a table of images; an error names the first line that is wrong."""
    try:
        text = read_text(table, LARGEST_TABLE)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{missing_path_text(table)} cannot be read: {os_reason(error)}.") from error
    reader = csv.reader(
        io.StringIO(text.removeprefix("\ufeff"), newline=""), skipinitialspace=True, strict=True
    )
    columns: list[str] | None = None
    while True:
        place = f"{table}, line {reader.line_num + 1}: "
        try:
            cells = [cell.strip() for cell in next(reader)]
        except StopIteration:
            return
        except csv.Error as error:
            raise DataError(f"{place}{error}.") from error
        if columns is None:
            columns = _checked_columns(cells, place)
        elif cells:
            if len(cells) != len(columns):
                raise DataError(
                    f"{place}there are {len(cells)} cells, but line 1 names {len(columns)} columns."
                )
            yield _row(dict(zip(columns, cells, strict=True)), table, place)


def _checked_columns(names: list[str], place: str) -> list[str]:
    wanted = ("path", "label", "split")
    if any(names.count(name) != 1 for name in wanted[:2]) or names.count("split") > 1:
        raise DataError(
            f"{place}the columns are {clipped(', '.join(names), repr)}: a table of images has path "
            "and label once each, and perhaps split, separated by commas."
        )
    if others := [name for name in names if name not in wanted]:
        logger.info(f"{place}only path, label and split are used, not {escape_controls(', '.join(others))}.")
    return names


def _row(cells: dict[str, str], table: Path, place: str) -> _Row:
    if empty := [name for name in ("path", "label") if not cells[name]]:
        raise DataError(f"{place}the {empty[0]} is empty.")
    part = cells.get("split", "train")
    if part not in _PARTS:
        near = did_you_mean(part, _PARTS)
        raise DataError(f"{place}the split {clipped(part, repr)} is not train, val or test{near}.")
    return _Row(place, table.parent / cells["path"], cells["label"], part)


def _subfolders(folder: Path) -> list[str]:
    return _names(folder, os.DirEntry.is_dir)


def _names(folder: Path, wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
    """Returns the sorted names of the entries that ``wanted`` accepts, without hidden ones."""
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.name[0] != "." and wanted(entry))
    except OSError as error:
        raise DataError(
            f"{missing_path_text(folder)} cannot be read as a folder of images: {error.strerror}."
        ) from error


def _image_files(folder: Path, classes: Sequence[str]) -> list[ImageFile]:
    """Returns the files in the class folders whose suffix is that of an image, in order."""
    images, others, nested = [], [], []
    labels = {name: label for label, name in enumerate(classes)}
    for name in _subfolders(folder):
        if name not in labels:
            raise DataError(f"{folder / name}: there is no class {name!r} among the training images.")
        files = _names(folder / name, os.DirEntry.is_file)
        others += [folder / name / file for file in files if not _is_picture(file)]
        nested += [folder / name / inner for inner in _subfolders(folder / name)]
        images += [ImageFile(folder / name / file, labels[name]) for file in files if _is_picture(file)]
    _log_others(folder, others)
    if nested:
        logger.info(f"Left out the folders in class folders: {_some(nested)}")
    return images


def _is_picture(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in _SUFFIXES


def _log_others(folder: Path, others: Sequence[Path]) -> None:
    if others:
        logger.info(f"Left out {len(others)} files in {folder} without an image's suffix: {_some(others)}")


def _split_off(files: list[ImageFile]) -> tuple[list[ImageFile], list[ImageFile]]:
    """Returns the training files and the test files: a fifth of each class, at least one of two.

    The split depends on the file names alone; one new file moves at most one other file.
    """
    test = set()
    for _, group in itertools.groupby(files, lambda file: file.label):  # files are sorted by label
        of_class = sorted(group, key=lambda file: hashlib.sha256(os.fsencode(file.path.name)).digest())
        test.update(of_class[: max(len(of_class) // _TEST_FRACTION, int(len(of_class) > 1))])
    return [file for file in files if file not in test], [file for file in files if file in test]


def _size_of_first(files: Sequence[ImageFile], skip_corrupt: bool) -> tuple[int, int]:
    for file in files:
        try:
            return upright_size(file.path)
        except DataError as error:
            if not skip_corrupt:
                raise DataError(f"{file.place}{error} {_REMEDY}") from error
    raise DataError("none of the images can be read.")


def report_failures(decoded: Decoded, files: Sequence[Path], folder: Path, skip_corrupt: bool) -> None:
    """Logs the files that are left out because they cannot be read.

    Args:
        decoded: the decoded files.
        files: their paths.
        folder: the folder that they are from, for messages.
        skip_corrupt: whether files may be left out.

    Raises:
        KdtrainError: a file cannot be read, and must not be left out.
    """
    if not decoded.failures:
        return
    first = decoded.failures[min(decoded.failures)]
    number = len(decoded.failures)
    if isinstance(first, UsageError):
        raise first
    if not skip_corrupt:
        more = f" (and {number - 1} more)" if number > 1 else ""
        raise DataError(f"{str(first).removesuffix('.')}{more}. {_REMEDY}")
    names = _some([files[index] for index in sorted(decoded.failures)])
    logger.info(f"{number} of {len(files)} images in {folder} cannot be read, and are left out: {names}")


def _some(paths: Sequence[Path]) -> str:
    """Returns the first three paths as a text."""
    return ", ".join(escape_controls(str(path)) for path in paths[:3]) + (", ..." if len(paths) > 3 else "")
