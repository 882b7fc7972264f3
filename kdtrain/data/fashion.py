"""Brings Fashion-MNIST into the user's cache folder, through flowvision's loader."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdtrain.errors import DataError
from kdtrain.runtime.files import temporary_folder

CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
# Of the unzipped files: training images and labels, test images and labels.
CONTENT_SHA256 = (
    "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
)

# Asked after flowvision's own: the folder of the data set's authors.
_MORE_MIRRORS = ("https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",)

_PATIENCE = 30.0  # seconds without a byte; flowvision itself would wait for ever


def default_cache_dir() -> Path:
    """Returns ``$XDG_CACHE_HOME/kdtrain``, or else ``~/.cache/kdtrain``."""
    chosen = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (chosen if chosen.is_absolute() else Path(os.path.expanduser("~/.cache"))) / "kdtrain"


def fetch_fashion_mnist(cache_dir: Path) -> Path:
    """Returns the folder with the four gzipped IDX files, downloading them the first time.

    flowvision checks each file by its MD5. The folder gets its name only when all four are there.

    Raises:
        DataError: the files cannot be downloaded, or cannot be stored.
    """
    folder = cache_dir / "fashion_mnist"
    if folder.is_dir():
        return folder
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        with temporary_folder(cache_dir) as temporary:
            downloaded = _download(temporary)
            try:
                downloaded.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process was faster, and has the same files
                    raise
    except OSError as error:
        raise DataError(
            f"Fashion-MNIST cannot be stored in {cache_dir}: {error.strerror or error}. "
            "Mend that, or set XDG_CACHE_HOME to another folder."
        ) from error
    return folder


def _download(folder: Path) -> Path:
    """Lets flowvision download the files into ``folder``; returns the folder with the gzipped ones."""
    loader = _loader()
    raw: Path = folder / loader.__name__ / "raw"
    reasons = []
    for mirror in (*loader.mirrors, *_MORE_MIRRORS):  # flowvision itself would give up at the first bad file
        try:
            with contextlib.redirect_stdout(sys.stderr), patience(_PATIENCE):
                loader(root=str(folder), download=True, source_url=mirror)  # only what is not there yet
        except (OSError, RuntimeError, ValueError, http.client.HTTPException) as error:
            damaged = [
                name for name, md5 in loader.resources if (raw / name).exists() and _md5(raw / name) != md5
            ]
            reasons.append(f"{damaged[0]} arrived incomplete or damaged" if damaged else str(error))
            continue
        for name, _ in loader.resources:
            (raw / name).with_suffix("").unlink()  # flowvision unzips; the gzipped file is half the size
        return raw
    files = ", ".join(name for name, _ in loader.resources)
    raise DataError(
        f"Fashion-MNIST cannot be downloaded ({'; '.join(dict.fromkeys(reasons))}). Try again where there "
        f"is a network, or get {files} elsewhere and name their folder with --data-dir."
    )


def _loader() -> Any:
    """Returns flowvision's FashionMNIST class, confined to downloading."""
    from kdtrain.runtime.oneflow import import_oneflow

    import_oneflow()
    from flowvision.datasets import FashionMNIST

    class Download(FashionMNIST):
        """Its constructor neither unpickles (``processed/*.pt``) nor builds tensors."""

        def _check_legacy_exist(self) -> bool:
            return False

        def _load_data(self) -> tuple[None, None]:
            return None, None

    return Download


@contextlib.contextmanager
def patience(seconds: float) -> Iterator[None]:
    """Makes connections fail after so many seconds without a byte, meanwhile."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _md5(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.md5(file.read()).hexdigest()
