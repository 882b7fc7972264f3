"""CIFAR arrives whole and checked, or not at all; nothing in its archive is unpacked, or run.

The archives come from a server on loopback, under the checksums of what the test made.
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import struct
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from kdtrain.data import cifar
from kdtrain.data.datasets import load_dataset
from kdtrain.errors import DataError
from tests.data.test_fashion import Server

FOLDERS = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
ARCHIVES = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}
Files = dict[str, bytes]


_Pickler: Any = pickle._Pickler


class Python2Pickler(_Pickler):
    """Writes texts and bytes as Python 2 did, and as the authors' files have them: both alike."""

    dispatch: ClassVar[dict[type, Any]] = dict(_Pickler.dispatch)

    def save_string(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        size = struct.pack("<Bi", ord("T"), len(data))
        self.write((size if len(data) > 255 else bytes([ord("U"), len(data)])) + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def like_python_2(content: object) -> bytes:
    stream = io.BytesIO()
    Python2Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()


def batch(number: int, count: int, labels: str = "labels") -> dict[str, Any]:
    random = np.random.default_rng(number)
    return {"data": random.integers(0, 256, (count, 3072), np.uint8), labels: [i % 3 for i in range(count)]}


def made_up(name: str) -> Files:
    if name == "cifar10":
        files = {f"data_batch_{n}": like_python_2(batch(n, 4)) for n in range(1, 6)}
        files["test_batch"] = like_python_2(batch(0, 3))
        files["batches.meta"] = like_python_2({"label_names": ["cat", "dog", "owl"]})
        return files
    return {
        "train": like_python_2(batch(1, 6, "fine_labels") | {"coarse_labels": [0] * 6}),
        "test": like_python_2(batch(2, 3, "fine_labels")),
        "meta": like_python_2({"fine_label_names": ["cat", "dog", "owl"], "coarse_label_names": ["pet"]}),
    }


def archive(name: str, files: Files, others: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for member in others:
            tar.addfile(member, io.BytesIO(bytes(member.size)))
        for file, content in files.items():
            info = tarfile.TarInfo(f"{FOLDERS[name]}/{file}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


class Mirror:
    """A server with archives that flowvision's classes take for the published ones."""

    def __init__(self, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = server
        self.monkeypatch = monkeypatch
        for name in FOLDERS:
            self.publish(name, made_up(name))

    def publish(self, name: str, files: Files, others: tuple[tarfile.TarInfo, ...] = ()) -> None:
        body = archive(name, files, others)
        self.server.files[ARCHIVES[name]] = body
        source = cifar._source(name)
        md5s = {file: hashlib.md5(content).hexdigest() for file, content in files.items()}
        lists = {
            which: [[file, md5s.get(file, "")] for file, _ in getattr(source, which)]
            for which in ("train_list", "test_list")
        }
        meta = source.meta | {"md5": md5s.get(source.meta["filename"], "")}
        address = self.server.address + ARCHIVES[name]
        md5 = hashlib.md5(body).hexdigest()
        for attribute, value in {**lists, "meta": meta, "url": address, "tgz_md5": md5}.items():
            self.monkeypatch.setattr(source, attribute, value)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(cifar, "_MORE_MIRRORS", ())
        yield Mirror(server, monkeypatch)
        server.shutdown()
        thread.join()


def refusal(name: str, cache: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_dataset(name, cache_dir=cache)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["cifar10", "cifar100"])
def test_a_download_is_read_kept_and_not_repeated(
    mirror: Mirror, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = load_dataset(name, cache_dir=tmp_path)
    assert capsys.readouterr().out == ""  # stdout is for answers
    assert (dataset.name, dataset.image_shape) == (name, (3, 32, 32))
    assert dataset.classes == ("cat", "dog", "owl")
    numbers = [(n, 4) for n in range(1, 6)] if name == "cifar10" else [(1, 6)]
    data = np.concatenate([batch(*number)["data"] for number in numbers])
    assert (dataset.train.images == data.reshape(-1, 3, 32, 32)).all()
    assert dataset.train.labels.tolist() == [i % 3 for _, count in numbers for i in range(count)]
    assert len(dataset.test) == 3
    asked = len(mirror.server.asked)
    assert load_dataset(name, cache_dir=tmp_path).fingerprint == dataset.fingerprint
    assert len(mirror.server.asked) == asked
    assert os.listdir(tmp_path) == [ARCHIVES[name]]


def test_an_archive_that_was_brought_along_is_read_without_a_network(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / ARCHIVES["cifar10"]).write_bytes(mirror.server.files[ARCHIVES["cifar10"]])
    assert len(load_dataset("cifar10", data_dir=tmp_path, cache_dir=tmp_path / "cache").train) == 20
    assert mirror.server.asked == []
    with pytest.raises(
        DataError, match=r"cifar-100-python.tar.gz cannot be read: No such file.*Get cifar-100"
    ):
        load_dataset("cifar100", data_dir=tmp_path)


def test_a_cut_or_missing_download_leaves_nothing_and_says_what_to_do(mirror: Mirror, tmp_path: Path) -> None:
    name = ARCHIVES["cifar10"]
    mirror.server.cut.add(name)
    text = refusal("cifar10", tmp_path)
    assert f"{name} arrived incomplete or damaged" in text
    assert f"get {name} elsewhere and name its folder with --data-dir" in text
    assert os.listdir(tmp_path) == []
    mirror.server.cut.clear()
    mirror.server.files[name] = mirror.server.files[ARCHIVES["cifar100"]]
    assert "arrived incomplete or damaged" in refusal("cifar10", tmp_path)
    del mirror.server.files[name]
    assert "cifar10 cannot be downloaded (HTTP Error 404: Not Found)" in refusal("cifar10", tmp_path)
    assert os.listdir(tmp_path) == []


def test_another_mirror_is_asked_where_the_first_fails(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "_MORE_MIRRORS", (mirror.server.address,))
    monkeypatch.setattr(cifar._source("cifar10"), "url", f"{mirror.server.address}elsewhere.tar.gz")
    assert len(load_dataset("cifar10", cache_dir=tmp_path).train) == 20


def test_a_mirror_that_falls_silent_is_given_up(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cifar, "_PATIENCE", 0.2)
    go_on = threading.Event()
    mirror.server.before_answer = lambda: go_on.wait(20)
    try:
        assert "timed out" in refusal("cifar10", tmp_path)
    finally:
        go_on.set()


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def test_a_hostile_archive_writes_nothing_anywhere(mirror: Mirror, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    folder = FOLDERS["cifar10"]
    hostile = (
        member("../../escaped", size=3),
        member(f"{outside}/escaped", size=3),
        member(f"{folder}/../../escaped", size=3),
        member(f"{folder}/link", tarfile.SYMTYPE, str(outside)),
        member(f"{folder}/link/escaped", size=3),
        member(f"{folder}/data_batch_1", tarfile.SYMTYPE, "/etc/passwd"),
        member(f"{folder}/data_batch_2", tarfile.LNKTYPE, "/etc/passwd"),
        member(f"{folder}/data_batch_3", tarfile.FIFOTYPE),
        member("/dev/null2", tarfile.CHRTYPE),
    )
    mirror.publish("cifar10", made_up("cifar10"), hostile)
    cache = tmp_path / "cache"
    assert len(load_dataset("cifar10", cache_dir=cache).train) == 20
    found = [path.relative_to(tmp_path) for path in tmp_path.rglob("*")]
    assert sorted(map(str, found)) == ["cache", f"cache/{ARCHIVES['cifar10']}", "outside"]
    assert not (tmp_path.parent / "escaped").exists()


class Trap:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.folder,)


def test_a_pickle_that_asks_for_more_than_bytes_is_refused_even_under_the_right_checksum(
    mirror: Mirror, tmp_path: Path
) -> None:
    sprung = tmp_path / "sprung"
    cache = tmp_path / "cache"
    for content, words in (
        (Trap(sprung), "which no images need"),
        ({"data": np.zeros((4, 3072), np.float64), "labels": [0, 1, 2, 0]}, "an array of f8, not of bytes"),
        ({"data": np.array([Trap(sprung)], object), "labels": [0]}, "an array of O8, not of bytes"),
        ([1, 2], "holds no images"),
    ):
        mirror.publish("cifar10", made_up("cifar10") | {"data_batch_4": like_python_2(content)})
        text = refusal("cifar10", cache)
        assert f"{FOLDERS['cifar10']}/data_batch_4 in {cache}" in text
        assert words in text
        (cache / ARCHIVES["cifar10"]).unlink()
    assert not sprung.exists()
    pickle.loads(pickle.dumps(Trap(sprung), 2))
    assert sprung.exists()  # the trap works


def test_a_damaged_archive_in_the_cache_is_named_with_its_remedy(mirror: Mirror, tmp_path: Path) -> None:
    load_dataset("cifar10", cache_dir=tmp_path)
    path = tmp_path / ARCHIVES["cifar10"]
    files = made_up("cifar10")
    other = files | {"data_batch_2": like_python_2(batch(9, 4))}
    less = {file: content for file, content in files.items() if file != "test_batch"}
    for content, words in (
        (path.read_bytes()[:-2000], "cannot be read"),
        (b"", "cannot be read"),
        (archive("cifar10", other), "data_batch_2 in it has the wrong checksum"),
        (archive("cifar10", less), "lacks test_batch"),
    ):
        path.write_bytes(content)
        text = refusal("cifar10", tmp_path)
        assert words in text
        assert text.endswith(f"Delete {path} and run again.")


def test_a_cache_that_cannot_be_written_is_named(mirror: Mirror, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    text = refusal("cifar10", tmp_path / "file")
    assert "cifar10 cannot be stored in" in text
    assert "XDG_CACHE_HOME" in text
