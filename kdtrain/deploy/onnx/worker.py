"""The process that computes one ONNX file, within limits of memory and time.

``process.py`` starts it and exchanges messages with it over a socket. A request is JSON, then the
pixels; a reply is JSON, then the logits. onnx and onnxruntime open an untrusted file in this process only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Normalization
from kdtrain.deploy.onnx.reader import (
    FLAT,
    INPUTS,
    NHW,
    NHWC,
    Assumed,
    OnnxForm,
    import_onnx,
    is_out_of_memory,
    read_onnx,
    reason,
)
from kdtrain.errors import CheckpointError, KdtrainError, size_text
from kdtrain.runtime.limits import IMAGES_AT_ONCE, MOST_CLASSES
from kdtrain.store.card import read_card

LONGEST = 30
"""Limit in seconds for loading a file, and for computing one portion of images."""

_MEMORY = 384 << 20  # bytes, beyond what the interpreter and its libraries use
_MEMORY_PER_BYTE = 5  # bytes more for each byte of the file
_MEMORY_PER_THREAD = 16 << 20  # bytes more for each thread, for its stack
_PIXELS_AT_ONCE = IMAGES_AT_ONCE * 28 * 28  # of a portion of images
_WORK_AT_ONCE = 10**12  # bytes of the file times pixels: a network uses a weight at most once a pixel or so
_FATAL = 4  # severity of onnxruntime's log; whatever is less severe is raised as an exception as well

Pixels = npt.NDArray[Any]
Outputs = npt.NDArray[np.float32]


@dataclass(frozen=True)
class _Network:
    """A network that has been loaded.

    Attributes:
        path: its file.
        form: the form of its images.
        normalization: that of images 0..255; None if it takes images as the parent sends them.
        session: onnxruntime's ``InferenceSession``.
        most: the largest portion of images.
        classes: the number of its classes; 0 as long as it is unknown.
    """

    path: Path
    form: OnnxForm
    normalization: Normalization | None
    session: Any
    most: int
    classes: int

    def outputs(self, images: Pixels) -> Outputs:
        """Returns the outputs, (N, classes) float32, for (N, C, H, W) images.

        Where memory does not suffice for all images, they are halved.

        Raises:
            CheckpointError: onnxruntime cannot compute them, or they are no table with a row for each image.
        """
        try:
            return self._in_batches(images)
        except MemoryError as error:
            half = len(images) // 2
            if not half:
                raise CheckpointError(f"{self.path} cannot be computed: {reason(error)}.") from error
        return np.concatenate([self.outputs(images[:half]), self.outputs(images[half:])])

    def _in_batches(self, images: Pixels) -> Outputs:
        """Returns the outputs; images are in batches if the graph fixes their size."""
        if self.normalization is not None:
            images = self.normalization.apply(images)
        size = self.form.batch or len(images)
        outputs = []
        for start in range(0, max(len(images), 1), max(size, 1)):
            few = images[start : start + size]
            missing = size - len(few)  # the last batch is filled up with copies of its last image
            filled = np.concatenate([few, np.repeat(few[-1:], missing, axis=0)]) if missing else few
            outputs.append(self._run(filled)[: len(few)])
        return np.concatenate(outputs)

    def _run(self, images: Pixels) -> Outputs:
        if self.form.layout == NHWC:
            images = images.transpose(0, 2, 3, 1)
        elif self.form.layout == NHW:
            images = images[:, 0]
        elif self.form.layout == FLAT:
            images = images.reshape(len(images), -1)
        if self.form.dtype == "uint8":
            images = np.rint(images).clip(0, 255)
        feed = {self.form.images: np.ascontiguousarray(images, self.form.dtype)}
        try:
            output = self.session.run([self.form.output], feed)[0]
        except Exception as error:  # onnxruntime has a dozen types of its own
            if is_out_of_memory(error):
                raise MemoryError from error
            raise CheckpointError(f"{self.path} cannot be computed: {reason(error)}.") from error
        expected = (self.classes,) if self.classes else range(2, MOST_CLASSES + 1)
        if output.ndim != 2 or len(output) != len(images) or output.shape[1] not in expected:
            raise CheckpointError(
                f"{self.path} is no image classifier: for {len(images)} images, its output "
                f"{self.form.output!r} has the shape {size_text(output.shape)}."
            )
        return np.asarray(output, np.float32)


def work() -> None:
    """Loads the file and computes requests until the parent closes the socket."""
    descriptor, path, threads, assumed = sys.argv[2:]
    connection = Connection(int(descriptor))
    with contextlib.suppress(EOFError, ConnectionError), _errors_sent(connection, path):
        network = _load(Path(path), int(threads), Assumed(**json.loads(assumed)) if assumed else None)
        about = {"form": network.form.to_json(), "classes": network.classes}
        connection.send_bytes(json.dumps({"about": about}).encode())
        while True:
            request, content = json.loads(connection.recv_bytes()), connection.recv_bytes()
            images = np.frombuffer(content, request["type"]).reshape(request["shape"])
            with _errors_sent(connection, path):
                outputs, seconds = _compute(network, images, request["size"])
                connection.send_bytes(json.dumps({"shape": outputs.shape, "seconds": seconds}).encode())
                connection.send_bytes(outputs.tobytes())


@contextlib.contextmanager
def _errors_sent(connection: Connection, path: str) -> Iterator[None]:
    """Sends an exception of the block to the parent instead of raising it."""
    try:
        yield
    except (EOFError, ConnectionError):
        raise  # the parent has closed the socket
    except Exception as error:
        text = str(error) if isinstance(error, KdtrainError) else f"{path} is damaged: {reason(error)}."
        connection.send_bytes(json.dumps({"error": text}).encode())


def _load(path: Path, threads: int, assumed: Assumed | None) -> _Network:
    """Returns the network in a file, after it has computed an image: one that cannot is refused at once."""
    beside = () if assumed is None else path.parent.glob(f"{path.stem}*")  # files of its weights
    _limit_memory(sum(map(_size, {path, *beside})), threads)
    with _time_limit():
        content, form = read_onnx(path, assumed)
        card = read_card(form.about, path) if form.about else None
        normalization = None
        if card is not None and assumed is None and form.images == INPUTS:
            normalization = Normalization(card.mean, card.std)
        network = _Network(
            path,
            form,
            normalization,
            _session(path, content, threads),
            _most(len(content), math.prod(form.shape[1:])),
            len(card.classes) if card is not None else 0,
        )
        # The graph of another program may leave open how many classes it has: an image tells.
        image = np.zeros((1, *form.shape), np.float32)
        return dataclasses.replace(network, classes=network.outputs(image).shape[1])


def _session(path: Path, content: bytes, threads: int) -> Any:
    """Returns onnxruntime's session for a graph."""
    _, onnxruntime = import_onnx()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _FATAL
    try:
        return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise CheckpointError(f"{path} cannot be used by onnxruntime: {reason(error)}.") from error


def _most(size: int, pixels: int) -> int:
    """Returns the largest portion, in images of so many pixels, for a network of ``size`` bytes."""
    return max(min(IMAGES_AT_ONCE, _PIXELS_AT_ONCE // pixels, _WORK_AT_ONCE // (size * pixels)), 1)


def _compute(network: _Network, images: Pixels, size: int) -> tuple[Outputs, list[float]]:
    """Returns (N, classes) float32 outputs, and the seconds of each portion of at most ``size`` images."""
    size = min(size, network.most)
    parts, seconds = [], []
    for start in range(0, max(len(images), 1), max(size, 1)):
        with _time_limit():
            start_time = time.perf_counter()
            parts.append(network.outputs(images[start : start + size]))
            seconds.append(time.perf_counter() - start_time)
    return np.concatenate(parts), seconds


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Ends this process by SIGALRM if the block takes too long, also while C code runs."""
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)


def _size(path: Path) -> int:
    """Returns the bytes of a file; 0 if it is none."""
    return path.stat().st_size if path.is_file() else 0


def _limit_memory(size: int, threads: int) -> None:
    """Sets RLIMIT_DATA to what this process uses now plus what a network of ``size`` bytes may use."""
    import_onnx()  # their code does not count
    now = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = now + _MEMORY + _MEMORY_PER_BYTE * size + _MEMORY_PER_THREAD * threads
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
