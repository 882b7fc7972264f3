"""Reader of NumPy's ``.npz``, a zip archive with a file for each array, and of data sets in such files."""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kdtrain.data.checks import assemble, check_classes
from kdtrain.data.dataset import Dataset
from kdtrain.data.idx import most_unzipped, read_at_most
from kdtrain.errors import DataError, KdtrainError, escape_controls, os_reason
from kdtrain.runtime.limits import MOST_PIXELS
from kdtrain.runtime.locations import missing_path_text
from kdtrain.runtime.regular_files import open_regular

ARRAYS = ("x_train", "y_train", "x_test", "y_test")
_CLASSES = "classes"
_LARGEST = 2 * MOST_PIXELS  # bytes of a data set's images and labels together


class Header(NamedTuple):
    """The header of an array in a file.

    Attributes:
        shape: the shape of the array.
        fortran_order: whether the first index changes fastest.
        dtype: its type.
        start: the position of the first value, in bytes.
    """

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]
    start: int

    @property
    def size(self) -> int:
        """The bytes of the values."""
        return self.dtype.itemsize * math.prod(self.shape)


Headers = Mapping[str, Header]


def load_npz(path: Path) -> Dataset:
    """Returns the data set in a ``.npz``, without unpickling.

    The file holds ``x_train`` and ``x_test``, (N, H, W) or (N, H, W, C) uint8; ``y_train`` and
    ``y_test``, whole numbers, (N,); and perhaps ``classes``, the names of the classes.

    Raises:
        DataError: the file is missing, damaged, or does not hold such arrays.
    """

    def check(headers: Headers) -> None:
        if sum(math.prod(headers[name].shape) for name in ARRAYS[::2]) > MOST_PIXELS:
            raise DataError(too_many(f"{path}"))

    found = read_arrays(path, ARRAYS, (_CLASSES,), _LARGEST, check)
    arrays, names = [found[name] for name in ARRAYS], found.get(_CLASSES)
    sources = [f"{name} in {path}" for name in ARRAYS]
    return assemble(f"npz:{path}", arrays, sources, check_classes(names, f"{_CLASSES} in {path}"))


def read_arrays(
    path: Path, required: Sequence[str], optional: Sequence[str], most: int, check: Callable[[Headers], None]
) -> dict[str, NDArray[Any]]:
    """Returns arrays of a ``.npz`` by name, without unpickling.

    Args:
        path: the file.
        required: the names of arrays that it must hold.
        optional: the names of arrays that it may hold.
        most: the limit of bytes of all these arrays together.
        check: raises a KdtrainError where the headers of these arrays, by name, are not those of such a
            file. It is called before any value is read.

    Raises:
        DataError: the file is missing or damaged, or lacks a required array, or its arrays are too large.
    """
    with _opened(path) as (file, archive):
        present = _names_in(archive)
        missing = [name for name in required if name not in present]
        if missing:
            listed = ", ".join(sorted(present)) or "nothing"
            raise DataError(f"{path} lacks {', '.join(missing)}; it holds {listed}.")
        names = [*required, *(name for name in optional if name in present)]
        headers = {name: _read_header(archive, name, path) for name in names}
        check(headers)
        _check_size(sum(header.size for header in headers.values()), most, file, path)
        return {name: _read(archive, name, path, header) for name, header in headers.items()}


def load_only_array(path: Path) -> NDArray[Any]:
    """Returns the only array in a ``.npz``, of up to MOST_PIXELS bytes, without unpickling.

    Raises:
        DataError: the file is missing, damaged, or does not hold exactly one array.
    """

    def check(headers: Headers) -> None:
        if headers[name].size > MOST_PIXELS:
            raise DataError(too_many(f"{escape_controls(name)} in {path}"))

    with _opened(path) as (_, archive):
        names = _names_in(archive)
    if len(names) != 1:
        raise DataError(f"{path} holds {len(names)} arrays: give a file with one, the images.")
    [name] = names
    return read_arrays(path, [name], (), MOST_PIXELS, check)[name]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, zipfile.ZipFile]]:
    """Yields the file and its archive; errors inside the block become DataError."""
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            yield file, archive
    except FileNotFoundError as error:
        raise DataError(f"{missing_path_text(path)} does not exist.") from error
    except KdtrainError:
        raise
    except Exception as error:  # zipfile raises almost any exception for a damaged archive
        raise DataError(f"{path} cannot be read as .npz: {os_reason(error).rstrip('.')}.") from error


def _names_in(archive: zipfile.ZipFile) -> set[str]:
    return {name[:-4] for name in archive.namelist() if name.endswith(".npy")}


def too_many(source: str) -> str:
    """Returns the message for images that do not fit in memory."""
    return (
        f"{source} holds more than {MOST_PIXELS >> 20} million pixel values, which take over 1 GiB as "
        "floats: use fewer or smaller images, or save them as image files (--dataset folder:DIR)."
    )


def _check_size(size: int, most: int, file: BinaryIO, path: Path) -> None:
    """Raises DataError if all arrays together have more bytes than kdtrain reads, or unzips."""
    unzipped = most_unzipped(file)
    if size > most:
        raise DataError(
            f"{path} states arrays of {size:,} bytes, more than the {most >> 20} MiB that kdtrain reads."
        )
    if size > unzipped:
        zipped = os.fstat(file.fileno()).st_size
        raise DataError(
            f"{path} states arrays of {size:,} bytes, more than the {unzipped >> 20} MiB that kdtrain unzips "
            f"from {zipped:,} bytes: save them with numpy.savez, which does not zip."
        )


def _read(archive: zipfile.ZipFile, name: str, path: Path, header: Header) -> NDArray[Any]:
    """Returns an array, if the archive's index states the same size as the array's header."""
    source, size = f"{escape_controls(name)} in {path}", header.size
    info = archive.getinfo(f"{name}.npy")
    if info.file_size != header.start + size:
        raise DataError(f"{source} is damaged: its header states {size} bytes of data.")
    with archive.open(info) as file:
        file.read(header.start)
        content = read_at_most(file, size + 1)
    if len(content) != size:
        raise DataError(f"{source} is damaged: it does not hold the {size} bytes that its header states.")
    array: NDArray[Any] = np.frombuffer(content, header.dtype)
    return array.reshape(header.shape[::-1]).T if header.fortran_order else array.reshape(header.shape)


def _read_header(archive: zipfile.ZipFile, name: str, path: Path) -> Header:
    source = f"{escape_controls(name)} in {path}"
    with archive.open(f"{name}.npy") as file:
        try:
            version = npy.read_magic(file)  # type: ignore[no-untyped-call]
            if version != (1, 0):  # later versions have headers of any length
                raise ValueError(f"its format version is {version[0]}.{version[1]} instead of 1.0")
            shape, fortran_order, dtype = npy.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
            header = Header(shape, fortran_order, dtype, file.tell())
        except Exception as error:  # NumPy's parser raises almost any exception for a damaged header
            reason = str(error).partition("\n")[0].rstrip(".")
            raise DataError(f"{source} is not an array that can be read: {reason}.") from error
    if header.dtype.hasobject or header.dtype.itemsize == 0:
        raise DataError(f"{source} is of type {header.dtype}: only plain numbers and texts are read.")
    if any(length < 0 for length in header.shape):
        raise DataError(f"{source} is damaged: its shape is {header.shape}.")
    return header
