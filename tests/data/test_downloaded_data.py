"""CIFAR and Fashion-MNIST are downloaded whole and checked; nothing in an archive is unpacked, or run.

A local mirror serves small files, whose checksums are taken for the published ones.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import pickle
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kdtrain.data import datasets
from kdtrain.data.cifar import ARCHIVES
from kdtrain.data.datasets import FILES, load_dataset
from kdtrain.errors import DataError
from tests.mirror import (
    Mirror,
    cifar_archive,
    cifar_batch,
    cifar_members,
    publish_cifar,
    python_2_pickle,
    serving,
)
from tests.refusals import Bomb, refusal_by
from tests.tools import idx_bytes

ARCHIVE = ARCHIVES["cifar10"].file
FOLDER = ARCHIVES["cifar10"].folder
MEMBERS = cifar_members("cifar10")


def fashion_file(name: str) -> bytes:
    shape = (30 if "train" in name else 20, *(28, 28) * ("images" in name))
    return idx_bytes(np.resize(np.arange(10, dtype=np.uint8), shape))


FASHION = {name: fashion_file(name) for name in FILES}
GZIPPED = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in FASHION.items()}


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with serving(GZIPPED) as mirror:
        for name in ARCHIVES:
            publish_cifar(mirror, monkeypatch, name, cifar_members(name))
        sha256, zipped = (
            tuple(hashlib.sha256(content).hexdigest() for content in files.values())
            for files in (FASHION, GZIPPED)
        )
        fashion = datasets.DATASETS["fashion_mnist"]._replace(
            sha256=sha256, zipped_sha256=zipped, mirrors=(mirror.address,)
        )
        monkeypatch.setitem(datasets.DATASETS, "fashion_mnist", fashion)
        yield mirror


def load(cache: Path) -> None:
    load_dataset("cifar10", cache_dir=cache)


refusal = refusal_by(load, DataError)


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_cifar_is_downloaded_read_and_kept(mirror: Mirror, tmp_path: Path, name: str) -> None:
    dataset = load_dataset(name, cache_dir=tmp_path)
    assert (dataset.name, dataset.image_shape) == (name, (3, 32, 32))
    assert dataset.classes == ("cat", "dog", "owl")
    numbers = [(n, 4) for n in range(1, 6)] if name == "cifar10" else [(1, 6)]
    data = np.concatenate([cifar_batch(*number)["data"] for number in numbers])
    assert (dataset.train.images == data.reshape(-1, 3, 32, 32)).all()
    assert dataset.train.labels.tolist() == [i % 3 for _, count in numbers for i in range(count)]
    assert len(dataset.test) == 3
    assert os.listdir(tmp_path) == [ARCHIVES[name].file]


def test_fashion_mnist_is_downloaded_read_and_kept(mirror: Mirror, tmp_path: Path) -> None:
    dataset = load_dataset("fashion_mnist", cache_dir=tmp_path)
    assert (dataset.name, dataset.image_shape) == ("fashion_mnist", (1, 28, 28))
    assert dataset.classes[9] == "Ankle boot"
    assert (dataset.train.images.ravel() == np.arange(30 * 28 * 28) % 10).all()
    assert (dataset.test.labels == np.arange(20) % 10).all()
    assert {path.name: path.read_bytes() for path in (tmp_path / "fashion_mnist").iterdir()} == GZIPPED


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist"])
def test_a_download_is_not_repeated(mirror: Mirror, tmp_path: Path, name: str) -> None:
    first = load_dataset(name, cache_dir=tmp_path)
    mirror.requested.clear()
    assert load_dataset(name, cache_dir=tmp_path).fingerprint == first.fingerprint
    assert mirror.requested == []


def test_an_archive_that_was_brought_along_is_read_without_a_network(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / ARCHIVE).write_bytes(mirror.files[ARCHIVE])
    assert len(load_dataset("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache").train) == 20
    assert mirror.requested == []
    with pytest.raises(
        DataError, match=r"cifar-100-python.tar.gz cannot be read: No such file.*Get cifar-100"
    ):
        load_dataset("cifar100", data_dir=tmp_path)


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def test_a_hostile_archive_writes_nothing_anywhere(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    hostile = (
        member("../../escaped", size=3),
        member(f"{outside}/escaped", size=3),
        member(f"{FOLDER}/../../escaped", size=3),
        member(f"{FOLDER}/link", tarfile.SYMTYPE, str(outside)),
        member(f"{FOLDER}/link/escaped", size=3),
        member(f"{FOLDER}/data_batch_1", tarfile.SYMTYPE, "/etc/passwd"),
        member(f"{FOLDER}/data_batch_2", tarfile.LNKTYPE, "/etc/passwd"),
        member(f"{FOLDER}/data_batch_3", tarfile.FIFOTYPE),
        member("/dev/null2", tarfile.CHRTYPE),
    )
    publish_cifar(mirror, monkeypatch, "cifar10", MEMBERS, hostile)
    cache = tmp_path / "cache"
    assert len(load_dataset("cifar10", cache_dir=cache).train) == 20
    found = [path.relative_to(tmp_path) for path in tmp_path.rglob("*")]
    assert sorted(map(str, found)) == ["cache", f"cache/{ARCHIVE}", "outside"]
    assert not (tmp_path.parent / "escaped").exists()


def test_a_pickle_that_asks_for_more_than_bytes_is_refused_even_under_the_right_checksum(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sprung = tmp_path / "sprung"
    cache = tmp_path / "cache"
    for content, words in (
        (Bomb(os.mkdir, str(sprung)), "posix.mkdir"),
        ({"data": np.zeros((4, 3072), np.float64), "labels": [0, 1, 2, 0]}, "an array of f8"),
        ({"data": np.array([Bomb(os.mkdir, str(sprung))], object), "labels": [0]}, "an array of O8"),
        ([1, 2], "holds no images"),
    ):
        members = MEMBERS | {"data_batch_4": python_2_pickle(content)}
        publish_cifar(mirror, monkeypatch, "cifar10", members)
        text = refusal(cache)
        assert f"{FOLDER}/data_batch_4 in {cache}" in text
        assert words in text
        (cache / ARCHIVE).unlink()
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Bomb(os.mkdir, str(sprung)), 2))
    assert sprung.exists()  # the trap works


def test_a_damaged_archive_of_cifar_in_cache_is_named_with_its_remedy(mirror: Mirror, tmp_path: Path) -> None:
    load_dataset("cifar10", cache_dir=tmp_path)
    path = tmp_path / ARCHIVE
    other = MEMBERS | {"data_batch_2": python_2_pickle(cifar_batch(9, 4))}
    less = {file: content for file, content in MEMBERS.items() if file != "test_batch"}
    for content, words in (
        (path.read_bytes()[:-2000], "cannot be read"),
        (b"", "cannot be read"),
        (cifar_archive("cifar10", other), "data_batch_2 has the wrong checksum"),
        (cifar_archive("cifar10", less), "lacks test_batch"),
    ):
        path.write_bytes(content)
        text = refusal(tmp_path)
        assert words in text
        assert text.endswith(f"Delete {path} and run again.")


def test_a_damaged_file_of_fashion_mnist_in_the_cache_is_named_with_its_remedy(
    mirror: Mirror, tmp_path: Path
) -> None:
    load_dataset("fashion_mnist", cache_dir=tmp_path)
    file = tmp_path / "fashion_mnist" / "train-labels-idx1-ubyte.gz"
    other_label = FASHION["train-labels-idx1-ubyte"][:-1] + b"\0"
    for content in (gzip.compress(other_label), GZIPPED[file.name][:-9]):
        file.write_bytes(content)
        with pytest.raises(DataError, match=f"{file}.* Delete {file.parent} and run again"):
            load_dataset("fashion_mnist", cache_dir=tmp_path)
