"""A local HTTP mirror for tests of downloads, and small archives in CIFAR's format for it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import io
import pickle
import struct
import tarfile
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar

import numpy as np
import pytest

from kdtrain.data import cifar, download


class Mirror(http.server.ThreadingHTTPServer):
    """Serves files from memory.

    Attributes:
        files: the body of each file, by name.
        cut: names of files of which only the first half is sent.
        requested: the name in each request, in order.
        halfway: is called between the halves of each body.
        ended: is set when the mirror closes; ``mirror.halfway = mirror.ended.wait`` makes it fall silent.
    """

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files = dict(files)
        self.cut: set[str] = set()
        self.requested: list[str] = []
        self.halfway: Callable[[], object] = lambda: None
        self.ended = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Prints nothing: some tests make the client leave."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        name = self.path.lstrip("/")
        self.server.requested.append(name)
        if name not in self.server.files:
            self.send_error(404)
            return
        body = self.server.files[name]
        middle = len(body) // 2
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[:middle])
        self.server.halfway()
        if name not in self.server.cut:
            self.wfile.write(body[middle:])

    def log_message(self, *arguments: object) -> None:
        """Prints nothing."""


@contextlib.contextmanager
def serving(files: Mapping[str, bytes]) -> Iterator[Mirror]:
    """Yields a mirror that serves these files."""
    with Mirror(files) as mirror:
        thread = threading.Thread(target=mirror.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield mirror
        finally:
            mirror.ended.set()
            mirror.shutdown()
            thread.join()


def closed_address() -> str:
    """Returns an address at which no server listens."""
    with Mirror({}) as mirror:
        return mirror.address


def try_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes downloads fail soon: after two seconds without a byte, and without a second attempt."""
    monkeypatch.setattr(download, "_TIMEOUT", 2.0)
    monkeypatch.setattr(download, "_RETRIES", 0)


Members = dict[str, bytes]
_Pickler: Any = pickle._Pickler


class _Python2Pickler(_Pickler):
    """Writes texts and bytes as Python 2 does, and as the published archives have them: both alike."""

    dispatch: ClassVar[dict[type, Any]] = dict(_Pickler.dispatch)

    def save_string(self, text: str | bytes) -> None:
        data = text.encode() if isinstance(text, str) else text
        size = struct.pack("<Bi", ord("T"), len(data))
        self.write((size if len(data) > 255 else bytes([ord("U"), len(data)])) + data)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def python_2_pickle(content: object) -> bytes:
    stream = io.BytesIO()
    _Python2Pickler(stream, protocol=2).dump(content)
    return stream.getvalue()


def cifar_batch(number: int, count: int, labels: str = "labels") -> dict[str, Any]:
    """Returns ``count`` images of noise, in three classes, as a member of an archive holds them."""
    random = np.random.default_rng(number)
    return {"data": random.integers(0, 256, (count, 3072), np.uint8), labels: [i % 3 for i in range(count)]}


def cifar_members(name: str) -> Members:
    """Returns a small pickle for each member of an archive."""
    if name == "cifar10":
        members = {f"data_batch_{n}": python_2_pickle(cifar_batch(n, 4)) for n in range(1, 6)}
        members["test_batch"] = python_2_pickle(cifar_batch(0, 3))
        members["batches.meta"] = python_2_pickle({"label_names": ["cat", "dog", "owl"]})
        return members
    names = {"fine_label_names": ["cat", "dog", "owl"], "coarse_label_names": ["pet"]}
    return {
        "train": python_2_pickle(cifar_batch(1, 6, "fine_labels") | {"coarse_labels": [0] * 6}),
        "test": python_2_pickle(cifar_batch(2, 3, "fine_labels")),
        "meta": python_2_pickle(names),
    }


def cifar_archive(name: str, members: Members, others: tuple[tarfile.TarInfo, ...] = ()) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        for other in others:
            tar.addfile(other, io.BytesIO(bytes(other.size)))
        for member, content in members.items():
            info = tarfile.TarInfo(f"{cifar.ARCHIVES[name].folder}/{member}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def publish_cifar(
    mirror: Mirror,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    members: Members,
    others: tuple[tarfile.TarInfo, ...] = (),
) -> None:
    """Serves an archive, with its checksums and the mirror's address in the place of the published ones."""
    archive = cifar.ARCHIVES[name]
    mirror.files[archive.file] = cifar_archive(name, members, others)

    def md5(published: Mapping[str, str]) -> dict[str, str]:
        return {member: hashlib.md5(members.get(member, b"")).hexdigest() for member in published}

    made_up = dataclasses.replace(
        archive,
        sha256=hashlib.sha256(mirror.files[archive.file]).hexdigest(),
        train=md5(archive.train),
        test=md5(archive.test),
        meta=md5(archive.meta),
    )
    monkeypatch.setitem(cifar.ARCHIVES, name, made_up)
    monkeypatch.setattr(cifar, "MIRRORS", (mirror.address,))
