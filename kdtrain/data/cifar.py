"""CIFAR-10 and CIFAR-100: published archives, downloaded once and read without being unpacked."""

from __future__ import annotations

import errno
import gzip
import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.checks import assemble
from kdtrain.data.dataset import Dataset
from kdtrain.data.download import download
from kdtrain.errors import DataError, os_reason
from kdtrain.runtime.regular_files import open_regular


@dataclass(frozen=True)
class Archive:
    """A published archive of pickled images.

    Attributes:
        file: its name.
        sha256: of the archive (hex).
        folder: the folder in the archive that holds the members.
        train: the MD5 (hex) of each member with training images, by name.
        test: the MD5 (hex) of each member with test images, by name.
        meta: the MD5 (hex) of the member with the names of the classes, by name.
        labels: the key of the labels in a member with images.
        classes: the key of the names in the member ``meta``.
    """

    file: str
    sha256: str
    folder: str
    train: Mapping[str, str]
    test: Mapping[str, str]
    meta: Mapping[str, str]
    labels: str
    classes: str


ARCHIVES = {
    "cifar10": Archive(
        file="cifar-10-python.tar.gz",
        sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        folder="cifar-10-batches-py",
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        labels="labels",
        classes="label_names",
    ),
    "cifar100": Archive(
        file="cifar-100-python.tar.gz",
        sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        folder="cifar-100-python",
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        labels="fine_labels",
        classes="fine_label_names",
    ),
}
"""By the names that ``--dataset`` takes."""

MIRRORS = ("https://www.cs.toronto.edu/~kriz/", "https://dataset.bj.bcebos.com/cifar/")
"""The authors' server, and a copy of the same files."""

_LARGEST = 200 << 20  # bytes of a member; the largest in use has 154 MB
_LARGEST_ARCHIVE = 400 << 20  # bytes, unzipped; CIFAR-10's has 186 MB
_PIXELS = (3, 32, 32)


def load_cifar(name: str, folder: Path | None, cache: Path) -> Dataset:
    """Returns the data set in the archive in ``folder``, or in the cache, which it is downloaded to.

    The members are pickles, written by Python 2. They are read only if they have the published
    checksum, by an unpickler that admits byte arrays and nothing else. Nothing is unpacked to disk.

    Args:
        name: a key of ARCHIVES.
        folder: a folder that holds the archive; None for the cache.
        cache: the folder of downloads.

    Raises:
        DataError: the archive cannot be downloaded, is not the published one, or is damaged.
    """
    archive = ARCHIVES[name]
    if folder is not None:
        path = folder / archive.file
        remedy = f"Get {archive.file} again."
    else:
        download(name, {archive.file: archive.sha256}, MIRRORS, cache)
        path = cache / archive.file
        remedy = f"Delete {path} and run again."
    try:
        contents = _read_archive(path, archive, remedy)
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {os_reason(error)}. {remedy}") from error
    arrays: list[NDArray[Any]] = []
    for members in (archive.train, archive.test):
        pixels = np.concatenate([contents[member]["data"] for member in members])
        arrays.append(pixels.reshape(-1, *_PIXELS).transpose(0, 2, 3, 1))
        arrays.append(np.concatenate([contents[member][archive.labels] for member in members]))
    (meta,) = archive.meta
    return assemble(name, arrays, [str(path)] * 4, contents[meta][archive.classes])


def _read_archive(path: Path, archive: Archive, remedy: str) -> dict[str, dict[str, Any]]:
    """Returns the unpickled members of the data set, by name; other members are skipped."""
    md5 = {**archive.train, **archive.test, **archive.meta}
    contents: dict[str, dict[str, Any]] = {}
    with (
        open_regular(path) as zipped,
        _BoundedGzip(fileobj=zipped) as unzipped,
        tarfile.open(fileobj=unzipped, mode="r|") as tar,
    ):
        for member in tar:
            folder, _, name = member.name.rpartition("/")
            if folder != archive.folder or name not in md5 or not member.isreg():
                continue
            file = tar.extractfile(member) if member.size <= _LARGEST else None
            data = file.read() if file is not None else b""
            if hashlib.md5(data).hexdigest() != md5[name]:
                raise DataError(f"{path}: its member {member.name} has the wrong checksum. {remedy}")
            contents[name] = _unpickle(data, f"{member.name} in {path}")
    missing = [name for name in md5 if name not in contents]
    if missing:
        raise DataError(f"{path} lacks {', '.join(missing)}. {remedy}")
    return contents


class _BoundedGzip(gzip.GzipFile):
    """A gzip reader that raises OSError beyond a number of bytes: a small file can unzip to a huge one."""

    left = _LARGEST_ARCHIVE

    def read(self, size: int | None = -1) -> bytes:
        data = super().read(size)
        self.left -= len(data)
        if self.left < 0:
            raise OSError(errno.EFBIG, "it unzips to far more than the published archive")
        return data


class _Unpickler(pickle.Unpickler):
    """Admits arrays of bytes and nothing else; it imports nothing and calls no function of NumPy's."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _byte_type
        if (module, name) == ("numpy.core.multiarray", "_reconstruct"):
            return _empty
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no image needs")


def _byte_type(name: object, *_: object) -> np.dtype[np.uint8]:
    if name != "u1":
        raise pickle.UnpicklingError(f"it holds an array of {name}, not of bytes")
    return np.dtype("u1", align=False, copy=True)


def _empty(*_: object) -> NDArray[np.uint8]:
    """Returns the array that the pickle fills afterwards."""
    return np.empty(0, np.uint8)


def _unpickle(data: bytes, source: str) -> dict[str, Any]:
    try:
        content = _Unpickler(io.BytesIO(data), encoding="latin1").load()
    except Exception as error:  # a damaged pickle raises almost any exception
        raise DataError(f"{source} was refused: {error}.") from error
    if not isinstance(content, dict):
        raise DataError(f"{source} holds no images.")
    return content
