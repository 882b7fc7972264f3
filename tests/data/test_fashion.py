"""Fashion-MNIST arrives whole and checked through flowvision's loader, or not at all.

The files come from a server on loopback, under the checksums of the files that the test made.
"""

from __future__ import annotations

import gzip
import hashlib
import http.server
import os
import pickle
import sys
import threading
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain.data import datasets, fashion
from kdtrain.data.datasets import FILES, Known, load_dataset
from kdtrain.errors import DataError

LENGTHS = {"train": 30, "t10k": 20}


def idx_file(name: str) -> bytes:
    """Small images and labels, in the format and under the names of the real ones."""
    count = LENGTHS[name.split("-")[0]]
    lengths = (count, 28, 28) if "images" in name else (count,)
    data = np.arange(np.prod(lengths)) % 10
    header = bytes([0, 0, 8, len(lengths)]) + b"".join(length.to_bytes(4, "big") for length in lengths)
    return header + data.astype(np.uint8).tobytes()


CONTENTS = {name: idx_file(name) for name in FILES}
GZIPPED = {f"{name}.gz": gzip.compress(content, mtime=0) for name, content in CONTENTS.items()}


class Server(http.server.ThreadingHTTPServer):
    """Serves ``files``; of those named in ``cut`` only the first half arrives."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(GZIPPED)
        self.cut: set[str] = set()
        self.asked: list[str] = []
        self.before_answer: Callable[[], object] = lambda: None

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is what some tests are about."""

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.asked.append(name)
        self.server.before_answer()
        if name not in self.server.files:
            self.send_error(404)
            return
        body = self.server.files[name]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if name in self.server.cut else body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def flowvision_class() -> Any:
    from kdtrain.runtime.oneflow import import_oneflow

    import_oneflow()
    from flowvision.datasets import FashionMNIST

    return FashionMNIST


@pytest.fixture
def server(flowvision_class: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A mirror with small files, to which flowvision's class and our table of checksums are turned."""
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        md5s = [(name, hashlib.md5(body).hexdigest()) for name, body in GZIPPED.items()]
        sha256s = tuple(hashlib.sha256(CONTENTS[name]).hexdigest() for name in FILES)
        monkeypatch.setattr(flowvision_class, "mirrors", [server.address])
        monkeypatch.setattr(fashion, "_MORE_MIRRORS", ())
        monkeypatch.setattr(flowvision_class, "resources", md5s)
        monkeypatch.setitem(datasets.DATASETS, "fashion_mnist", Known(fashion.CLASSES, sha256s))
        yield server
        server.shutdown()
        thread.join()


def refusal(cache: Path) -> str:
    """The sentence with which the data set is refused; the cache is as empty as before."""
    with pytest.raises(DataError) as caught:
        load_dataset("fashion_mnist", cache_dir=cache)
    assert list(cache.iterdir()) == []
    text = str(caught.value)
    assert "--data-dir" in text
    assert "\n" not in text
    return text


def test_a_download_is_read_kept_and_not_repeated(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "new" / "cache"
    first = load_dataset("fashion_mnist", cache_dir=cache)
    assert capsys.readouterr().out == ""  # stdout is for answers
    assert first.name == "fashion_mnist"
    assert first.classes[9] == "Ankle boot"
    assert (len(first.train), len(first.test), first.image_shape) == (30, 20, (1, 28, 28))
    assert (first.train.images.ravel() == np.arange(30 * 28 * 28) % 10).all()
    assert (first.test.labels == np.arange(20) % 10).all()
    assert [path.name for path in cache.iterdir()] == ["fashion_mnist"]
    kept = {path.name: path.read_bytes() for path in (cache / "fashion_mnist").iterdir()}
    assert kept == GZIPPED

    server.asked.clear()
    assert load_dataset("fashion_mnist", cache_dir=cache).fingerprint == first.fingerprint
    assert server.asked == []


def test_a_wrong_checksum_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.files["t10k-images-idx3-ubyte.gz"] = gzip.compress(b"something else")
    assert "t10k-images-idx3-ubyte.gz arrived incomplete or damaged" in refusal(tmp_path)


def test_a_truncated_body_leaves_nothing(server: Server, tmp_path: Path) -> None:
    server.cut.add("train-images-idx3-ubyte.gz")
    assert "train-images-idx3-ubyte.gz arrived incomplete or damaged" in refusal(tmp_path)


def test_a_missing_file_leaves_nothing(server: Server, tmp_path: Path) -> None:
    del server.files["t10k-labels-idx1-ubyte.gz"]
    assert "Error downloading t10k-labels-idx1-ubyte.gz" in refusal(tmp_path)


def test_no_network_leaves_nothing(
    server: Server, flowvision_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as refusing:  # closed again: nobody listens at its address
        address = refusing.address
    monkeypatch.setattr(flowvision_class, "mirrors", [address])
    text = refusal(tmp_path)
    assert "cannot be downloaded" in text
    for name in GZIPPED:
        assert name in text


def test_a_server_that_falls_silent_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silence = threading.Event()
    server.before_answer = silence.wait
    monkeypatch.setattr(fashion, "_PATIENCE", 0.2)
    try:
        assert "cannot be downloaded" in refusal(tmp_path)
    finally:
        silence.set()


def test_a_first_mirror_that_fails_is_passed_over(
    server: Server, flowvision_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Server() as refusing:
        address = refusing.address
    monkeypatch.setattr(flowvision_class, "mirrors", [address, server.address])
    assert len(load_dataset("fashion_mnist", cache_dir=tmp_path).train) == 30


@pytest.mark.parametrize("fault", ["cut", "wrong", "silent"])
def test_a_mirror_that_serves_nothing_useful_is_passed_over(
    fault: str, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "t10k-images-idx3-ubyte.gz"
    silence = threading.Event()
    with Server() as second:
        thread = threading.Thread(target=second.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        monkeypatch.setattr(fashion, "_MORE_MIRRORS", (second.address,))
        monkeypatch.setattr(fashion, "_PATIENCE", 0.5)
        if fault == "cut":
            server.cut.add(name)
        elif fault == "wrong":
            server.files[name] = gzip.compress(b"something else")
        else:
            server.before_answer = silence.wait
        try:
            assert len(load_dataset("fashion_mnist", cache_dir=tmp_path).train) == 30
        finally:
            silence.set()
            second.shutdown()
            thread.join()
    if fault != "silent":
        assert name in second.asked
        assert "train-images-idx3-ubyte.gz" not in second.asked, "it had arrived from the first"
    kept = {path.name: path.read_bytes() for path in (tmp_path / "fashion_mnist").iterdir()}
    assert kept == GZIPPED


class Trap:
    """Unpickling it makes the folder ``sprung``."""

    def __init__(self, sprung: Path) -> None:
        self.sprung = sprung

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.sprung),)


def plant_pickles(root: Path, sprung: Path) -> None:
    """Lays what flowvision takes for a data set of old, wherever its loader could look for it."""
    for name in ("FashionMNIST", fashion._loader().__name__):
        for folder in (root / name / "processed", root / "fashion_mnist" / name / "processed"):
            folder.mkdir(parents=True, exist_ok=True)
            for file in ("training.pt", "test.pt"):
                (folder / file).write_bytes(pickle.dumps(Trap(sprung)))


def test_a_legacy_pickle_is_never_opened(
    server: Server, flowvision_class: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sprung = tmp_path / "sprung"
    plant_pickles(tmp_path, sprung)
    # oneflow hands such a file to torch, where there is one.
    torch = types.ModuleType("torch")
    monkeypatch.setattr(torch, "load", lambda path, **_: pickle.loads(path.read_bytes()), raising=False)
    monkeypatch.setattr(torch, "Tensor", np.ndarray, raising=False)
    monkeypatch.setitem(sys.modules, "torch", torch)
    with pytest.raises(TypeError):
        flowvision_class(root=str(tmp_path), download=True)
    assert sprung.exists()  # the trap works
    sprung.rmdir()

    fashion._loader()(root=str(tmp_path), download=True)
    (tmp_path / "fashion_mnist").rename(tmp_path / "elsewhere")
    assert load_dataset("fashion_mnist", cache_dir=tmp_path).name == "fashion_mnist"
    assert not sprung.exists()


def test_a_damaged_cache_is_named_with_its_remedy(server: Server, tmp_path: Path) -> None:
    load_dataset("fashion_mnist", cache_dir=tmp_path)
    file = tmp_path / "fashion_mnist" / "train-labels-idx1-ubyte.gz"
    labels = bytearray(CONTENTS["train-labels-idx1-ubyte"])
    labels[-1] ^= 1
    for content in (gzip.compress(labels), file.read_bytes()[:-9], None):
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(DataError, match=f"{file}.* Delete {file.parent} and run again"):
            load_dataset("fashion_mnist", cache_dir=tmp_path)
        file.touch()


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be stored in .*file.*XDG_CACHE_HOME"):
        load_dataset("fashion_mnist", cache_dir=tmp_path / "file")


def test_two_downloads_at_once_both_succeed(server: Server, tmp_path: Path) -> None:
    def let_another_process_finish() -> None:
        (tmp_path / "fashion_mnist").mkdir(exist_ok=True)
        for name, body in GZIPPED.items():
            (tmp_path / "fashion_mnist" / name).write_bytes(body)

    server.before_answer = let_another_process_finish
    assert len(load_dataset("fashion_mnist", cache_dir=tmp_path).train) == 30
    assert [path.name for path in tmp_path.iterdir()] == ["fashion_mnist"]


def test_downloads_belong_into_the_users_cache_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/elsewhere")
    assert fashion.default_cache_dir() == Path("/var/elsewhere/kdtrain")
    for unusable in ("", "relative/folder"):
        monkeypatch.setenv("XDG_CACHE_HOME", unusable)
        assert fashion.default_cache_dir() == Path("/home/somebody/.cache/kdtrain")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert fashion.default_cache_dir() == Path("/home/somebody/.cache/kdtrain")
