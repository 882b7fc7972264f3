"""Fixtures of the service's tests: exported models, and a service in a process of its own."""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import uvicorn
from PIL import Image

from kdtrain.data.dataset import Dataset
from kdtrain.deploy.export.onnx_file import to_onnx
from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.deploy.serve.app import make_app
from kdtrain.deploy.serve.connections import Server
from kdtrain.deploy.serve.requests import Limits
from kdtrain.engine.trainer import Trainer
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard, model_card
from kdtrain.store.checkpoint import load_model, save_model, snapshot
from tests.conftest import LoaderFactory
from tests.tools import ROOT

JSON = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}


@dataclass(frozen=True)
class Answer:
    """A response: the status, the headers, and the JSON in the body."""

    status: int
    headers: http.client.HTTPMessage
    content: Any


@dataclass(frozen=True)
class Service:
    """A running service."""

    port: int
    process: subprocess.Popen[str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    def ask(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, method: str = ""
    ) -> Answer:
        return ask(self.port, path, body, headers, method)


def ask(
    port: int,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    method: str = "",
    seconds: float = 60,
) -> Answer:
    """Sends a request on a connection of its own; returns the response."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=seconds)) as connection:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
        response = connection.getresponse()
        return Answer(response.status, response.headers, json.loads(response.read() or "null"))


Serve = Callable[..., AbstractContextManager[Service]]


@contextmanager
def serve(*words: str | Path, files: int = 0) -> Iterator[Service]:
    """Runs ``kdtrain serve`` on a free port; kills it at the end if it still runs.

    Args:
        words: the flags.
        files: the hard limit of open files; 0 sets none.
    """
    limit = ["prlimit", f"--nofile={files}"] if files else []
    process = subprocess.Popen(  # a real one: a fork of the tests has OneFlow and onnxruntime in it
        [*limit, sys.executable, "-m", "kdtrain", "serve", *map(str, words), "--port", "0"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        address = process.stdout.readline()
        assert address, process.stderr.read()
        yield Service(int(address.rstrip("/\n").rpartition(":")[2]), process)
    finally:
        process.kill()
        process.communicate()


@contextmanager
def service_with(model: Path, limits: Limits) -> Iterator[int]:
    """Runs a service in a thread of this process, with limits that no flag sets; yields its port."""
    app = make_app(OnnxModel.load(model), None, limits, threads=1)
    server = Server(uvicorn.Config(app, lifespan="off", ws="none", log_level="critical"), limits)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # the rest of a response is in the process
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset, make_loader: LoaderFactory) -> Path:
    """A folder with a student and a teacher of MNIST, each as a checkpoint and as an ONNX file."""
    folder = tmp_path_factory.mktemp("exported")
    for name, arch, images in (("student", "student_mlp", 3000), ("teacher", "hinton_800", 1500)):
        flow.manual_seed(0)
        model = build_model(arch, mnist.image_shape, mnist.num_classes)
        trainer = Trainer(model, partial(flow.optim.Adam, lr=3e-3), [])
        trainer.fit(make_loader(images), make_loader(256, start=6000, seed=None), epochs=1, directory=folder)
        save_model(folder / f"{name}.safetensors", snapshot(model), model_card(name, arch, mnist))
        export(folder / f"{name}.safetensors")
    return folder


@pytest.fixture(scope="session")
def pets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model of colour images."""
    path = tmp_path_factory.mktemp("pets") / "pets.safetensors"
    flow.manual_seed(0)
    shape, classes = (3, 16, 12), ("cat", "dog", "a rather long-haired guinea pig")
    card = ModelCard(
        "student_kd", "student_mlp", "folder:pets", shape, classes, (0.5,) * 3, (0.2,) * 3, temperature=2.5
    )
    save_model(path, snapshot(build_model("student_mlp", shape, len(classes))), card)
    return export(path)


def export(checkpoint: Path) -> Path:
    saved = load_model(checkpoint)
    path = checkpoint.with_suffix(".onnx")
    path.write_bytes(to_onnx(saved.build(), saved.card, normalized_input=False, checkpoint_sha256="0" * 64))
    return path


@pytest.fixture(scope="session")
def service(exported: Path) -> Iterator[Service]:
    """A service of both models."""
    words = ("--teacher", exported / "teacher.onnx")
    with serve(exported / "student.onnx", *words) as running:
        yield running


@pytest.fixture(scope="session")
def pet_service(pets: Path) -> Iterator[Service]:
    """A service of colour images, without a teacher."""
    with serve(pets) as running:
        yield running


@pytest.fixture(scope="session")
def photo(mnist: Dataset) -> Image.Image:
    """A 7, dark on coloured paper."""
    ink = Image.fromarray(mnist.test.images[0, 0]).resize((140, 140), Image.Resampling.BICUBIC)
    return Image.composite(Image.new("RGB", ink.size, "navy"), Image.new("RGB", ink.size, "wheat"), ink)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def as_json(pixels: npt.NDArray[np.generic]) -> bytes:
    return json.dumps({"pixels": pixels.tolist()}).encode()
