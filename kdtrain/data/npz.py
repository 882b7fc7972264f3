"""Reader of data sets in NumPy's ``.npz``, a zip archive with a file for each array."""

from __future__ import annotations

import contextlib
import math
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kdtrain.data.checks import assemble, check_classes
from kdtrain.data.dataset import Dataset
from kdtrain.errors import DataError, escape_controls
from kdtrain.runtime.limits import MOST_PIXELS
from kdtrain.runtime.locations import missing_path_text
from kdtrain.runtime.regular_files import open_regular

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_CLASSES = "classes"
_LARGEST = {"x": MOST_PIXELS, "y": 1 << 27, "c": 1 << 24}  # bytes, by the name's first letter


def load_npz(path: Path) -> Dataset:
    """Returns the data set in a ``.npz``, without unpickling.

    The file holds ``x_train`` and ``x_test``, (N, H, W) or (N, H, W, C) uint8; ``y_train`` and
    ``y_test``, whole numbers, (N,); and perhaps ``classes``, the names of the classes. Memory for an
    array is allocated after the size in its header has been checked.

    Raises:
        DataError: the file is missing, damaged, or does not hold such arrays.
    """
    found = read_arrays(path, ARRAYS, (_CLASSES,), lambda name: _LARGEST[name[0]])
    arrays, names = [found[name] for name in ARRAYS], found.get(_CLASSES)
    if sum(array.size for array in arrays[::2]) > MOST_PIXELS:
        raise DataError(too_many(f"{path}"))
    sources = [f"{name} in {path}" for name in ARRAYS]
    return assemble(f"npz:{path}", arrays, sources, check_classes(names, f"{_CLASSES} in {path}"))


def read_arrays(
    path: Path, required: Sequence[str], optional: Sequence[str], most: Callable[[str], int]
) -> dict[str, NDArray[Any]]:
    """Returns arrays of a ``.npz`` by name, without unpickling.

    Args:
        path: the file.
        required: the names of arrays that it must hold.
        optional: the names of arrays that it may hold.
        most: returns the limit of bytes of an array of this name.

    Raises:
        DataError: the file is missing or damaged, or lacks a required array, or an array is too large.
    """
    with _opened(path) as archive:
        present = _names_in(archive)
        missing = [name for name in required if name not in present]
        if missing:
            listed = ", ".join(sorted(present)) or "nothing"
            raise DataError(f"{path} lacks {', '.join(missing)}; it holds {listed}.")
        names = [*required, *(name for name in optional if name in present)]
        return {name: _read(archive, name, path, most(name)) for name in names}


def load_only_array(path: Path) -> NDArray[Any]:
    """Returns the only array in a ``.npz``, of up to MOST_PIXELS bytes, without unpickling.

    Raises:
        DataError: the file is missing, damaged, or does not hold exactly one array.
    """
    with _opened(path) as archive:
        names = _names_in(archive)
        if len(names) != 1:
            raise DataError(f"{path} holds {len(names)} arrays: give a file with one, the images.")
        return _read(archive, names.pop(), path, MOST_PIXELS)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    """Yields the archive; raises DataError for all errors meanwhile."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            yield archive
    except FileNotFoundError as error:
        raise DataError(f"{missing_path_text(path)} does not exist.") from error
    except DataError:
        raise
    except Exception as error:  # zipfile raises almost any exception for a damaged archive
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read as .npz: {reason.rstrip('.')}.") from error


def _names_in(archive: zipfile.ZipFile) -> set[str]:
    return {name[:-4] for name in archive.namelist() if name.endswith(".npy")}


def too_many(source: str) -> str:
    """Returns the message for images that do not fit in memory."""
    return (
        f"{source} holds more than {MOST_PIXELS >> 20} million pixel values, which take over 1 GiB as "
        "floats: use fewer or smaller images, or save them as image files (--dataset folder:DIR)."
    )


def _read(archive: zipfile.ZipFile, name: str, path: Path, most: int) -> NDArray[Any]:
    """Returns an array, if the archive's index states the same size as the array's header."""
    source = f"{escape_controls(name)} in {path}"
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        shape, fortran_order, dtype = _read_header(file, source)
        size = dtype.itemsize * math.prod(shape)
        if size > most:
            raise DataError(
                too_many(source) if most == MOST_PIXELS else f"{source} is too large: {size} bytes."
            )
        if info.file_size != file.tell() + size:
            raise DataError(f"{source} is damaged: its header states {size} bytes of data.")
        content = file.read(size)
        if len(content) != size or file.read(1):
            raise DataError(f"{source} is damaged: it does not hold the {size} bytes that its header states.")
    array: NDArray[Any] = np.frombuffer(content, dtype)
    return array.reshape(shape[::-1]).T if fortran_order else array.reshape(shape)


def _read_header(file: IO[bytes], source: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Returns shape, whether the order is Fortran's, and type."""
    try:
        version = npy.read_magic(file)  # type: ignore[no-untyped-call]
        if version != (1, 0):  # later versions have headers of any length
            raise ValueError(f"its format version is {version[0]}.{version[1]} instead of 1.0")
        shape, fortran_order, dtype = npy.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
    except Exception as error:  # NumPy's parser raises almost any exception for a damaged header
        raise DataError(f"{source} is not an array that can be read: {error}.") from error
    if dtype.hasobject or dtype.itemsize == 0:
        raise DataError(f"{source} is of type {dtype}: only plain numbers and texts are read.")
    if any(length < 0 for length in shape):
        raise DataError(f"{source} is damaged: its shape is {shape}.")
    return shape, fortran_order, dtype
