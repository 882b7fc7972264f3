"""CIFAR-10 and CIFAR-100: brings their archives into the cache folder, and reads them without unpacking."""

from __future__ import annotations

import contextlib
import errno
import gzip
import hashlib
import http.client
import io
import pickle
import sys
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.checks import assemble
from kdtrain.data.dataset import Dataset
from kdtrain.data.fashion import patience
from kdtrain.errors import DataError
from kdtrain.runtime.files import temporary_folder
from kdtrain.runtime.regular_files import open_regular

NAMES = {"cifar10": "CIFAR10", "cifar100": "CIFAR100"}
"""What ``--dataset`` calls them, and flowvision."""

# Asked after the authors' own: files of the same names and the same bytes.
_MORE_MIRRORS = ("https://dataset.bj.bcebos.com/cifar/",)

_PATIENCE = 30.0  # seconds without a byte
_LARGEST = 200 << 20  # bytes of a member; the largest that there is has 154 MB
_LARGEST_ARCHIVE = 400 << 20  # bytes, unzipped; CIFAR-10's has 186 MB
_PIXELS = (3, 32, 32)


def load_cifar(name: str, folder: Path | None, cache: Path) -> Dataset:
    """Returns the data set, from the archive in ``folder``, or else in the cache, where it is downloaded to.

    Its files are pickles, made by Python 2. They are read only if they have the published checksum,
    and then by an unpickler that knows byte arrays and nothing else. Nothing is ever unpacked to the
    disk.

    Raises:
        DataError: the archive cannot be downloaded, is not the published one, or is damaged.
    """
    source = _source(name)
    if folder is not None:
        path = folder / source.filename
        remedy = f"Get {source.filename} again."
    else:
        path = _fetch(name, source, cache)
        remedy = f"Delete {path} and run again."
    try:
        contents = _read_archive(path, source, remedy)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {reason}. {remedy}") from error
    arrays: list[NDArray[Any]] = []
    for files in (source.train_list, source.test_list):
        parts = [contents[file] for file, _ in files]
        arrays.append(np.concatenate([part["data"] for part in parts]).reshape(-1, *_PIXELS))
        labels = [part["labels" if "labels" in part else "fine_labels"] for part in parts]
        arrays.append(np.concatenate(labels))
    images = [array.transpose(0, 2, 3, 1) if array.ndim == 4 else array for array in arrays]
    classes = contents[source.meta["filename"]][source.meta["key"]]
    return assemble(name, images, [str(path)] * 4, classes)


def _source(name: str) -> Any:
    """Returns flowvision's class, for what it knows: addresses, names and checksums."""
    from kdtrain.runtime.oneflow import import_oneflow

    import_oneflow()
    import flowvision.datasets

    return getattr(flowvision.datasets, NAMES[name])


def _fetch(name: str, source: Any, cache: Path) -> Path:
    """Returns where the archive is, downloading it the first time. It gets its name when it is complete."""
    path = cache / str(source.filename)
    if path.is_file():
        return path
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with temporary_folder(cache) as temporary:
            _download(name, source, temporary)
            (temporary / source.filename).replace(path)
    except OSError as error:
        raise DataError(
            f"{name} cannot be stored in {cache}: {error.strerror or error}. "
            "Mend that, or set XDG_CACHE_HOME to another folder."
        ) from error
    return path


def _download(name: str, source: Any, folder: Path) -> None:
    from flowvision.datasets.utils import download_url

    reasons = []
    for address in (source.url, *(mirror + source.filename for mirror in _MORE_MIRRORS)):
        try:
            with contextlib.redirect_stdout(sys.stderr), patience(_PATIENCE):
                download_url(address, str(folder), source.filename, source.tgz_md5)
            return
        except (OSError, RuntimeError, ValueError, RecursionError, http.client.HTTPException) as error:
            arrived = (folder / source.filename).exists()
            reasons.append(f"{source.filename} arrived incomplete or damaged" if arrived else str(error))
            (folder / source.filename).unlink(missing_ok=True)
    raise DataError(
        f"{name} cannot be downloaded ({'; '.join(dict.fromkeys(reasons))}). Try again where there is a "
        f"network, or get {source.filename} elsewhere and name its folder with --data-dir."
    )


def _read_archive(path: Path, source: Any, remedy: str) -> dict[str, dict[str, Any]]:
    """Returns what the data set's files hold, by file; other members of the archive are left alone."""
    wanted = dict([*source.train_list, *source.test_list, (source.meta["filename"], source.meta["md5"])])
    contents: dict[str, dict[str, Any]] = {}
    with (
        open_regular(path) as zipped,
        _BoundedGzip(fileobj=zipped) as unzipped,
        tarfile.open(fileobj=unzipped, mode="r|") as archive,
    ):
        for member in archive:
            folder, _, name = member.name.rpartition("/")
            if folder != source.base_folder or name not in wanted or not member.isreg():
                continue
            file = archive.extractfile(member) if member.size <= _LARGEST else None
            data = file.read() if file is not None else b""
            if hashlib.md5(data).hexdigest() != wanted[name]:
                raise DataError(f"{path}: {member.name} in it has the wrong checksum. {remedy}")
            contents[name] = _unpickle(data, f"{member.name} in {path}")
    missing = [name for name in wanted if name not in contents]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}. {remedy}")
    return contents


class _BoundedGzip(gzip.GzipFile):
    """Raises OSError beyond a number of bytes: a few zipped ones can become very many."""

    left = _LARGEST_ARCHIVE

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.EFBIG, "it unzips to far more than the published archive")
        return data


class _Unpickler(pickle.Unpickler):
    """Knows arrays of bytes and nothing else; it looks nothing up and calls nothing of NumPy's own."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _byte_type
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return _empty
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no images need")


def _byte_type(name: object, *_: object) -> np.dtype[np.uint8]:
    if name != "u1":
        raise pickle.UnpicklingError(f"it holds an array of {name}, not of bytes")
    return np.dtype("u1", align=False, copy=True)


def _empty(*_: object) -> NDArray[np.uint8]:
    """Returns the array that the pickle goes on to fill."""
    return np.empty(0, np.uint8)


def _unpickle(data: bytes, where: str) -> dict[str, Any]:
    try:
        content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f"{where} was refused: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{where} holds no images.")
    return content
