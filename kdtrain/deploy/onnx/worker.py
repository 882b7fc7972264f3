"""The process that computes one ONNX file, within limits of memory and time.

``onnx_process.py`` starts it and exchanges messages with it over a socket. A request is JSON, then the
pixels; a reply is JSON, then the logits. onnx and onnxruntime open an untrusted file in this process only.
"""

from __future__ import annotations

import contextlib
import json
import resource
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Normalization
from kdtrain.deploy.onnx.classifier import FLAT, NHW, NHWC, Assumed, ClassifierForm, read_classifier
from kdtrain.deploy.onnx.cost import LARGEST_PEAK, Cost, reason
from kdtrain.deploy.onnx.reader import INPUTS, LOGITS, import_onnx, read_onnx
from kdtrain.errors import CheckpointError, KdtrainError, size_text
from kdtrain.runtime.limits import IMAGES_AT_ONCE, MOST_CLASSES
from kdtrain.store.card import ModelCard

LONGEST = 30
"""Limit in seconds for loading a file, and for computing one batch."""

_MEMORY = 384 << 20  # bytes, beyond what the interpreter and its libraries use
_MEMORY_PER_BYTE = 5  # bytes more for each byte of the file
_MEMORY_PER_THREAD = 16 << 20  # bytes more for each thread, for its stack
_MOST_WORK = 20_000_000_000  # multiply-adds of a batch of several images
_FATAL = 4  # severity of onnxruntime's log; whatever is less severe is raised as an exception as well

Pixels = npt.NDArray[Any]


class _Computed(Protocol):
    """A network in a file that has been loaded."""

    @property
    def most(self) -> int:
        """The largest batch, in images."""

    def logits(self, images: Pixels) -> npt.NDArray[np.float32]:
        """Returns (N, classes) float32, from (N, C, H, W) images."""


@dataclass(frozen=True)
class _Network:
    """A network that kdtrain has exported and onnxruntime computes.

    Attributes:
        path: its file.
        card: its images, classes and normalisation.
        images: the name of its input.
        session: onnxruntime's ``InferenceSession``.
        most: the largest batch, in images.
    """

    path: Path
    card: ModelCard
    images: str
    session: Any
    most: int

    def logits(self, images: Pixels) -> npt.NDArray[np.float32]:
        """Returns (N, classes) float32 logits of (N, C, H, W) images, pixels 0..255."""
        if self.images == INPUTS:
            images = Normalization(self.card.mean, self.card.std).apply(images)
        feed = {self.images: np.ascontiguousarray(images, np.float32)}
        try:
            logits: npt.NDArray[np.float32] = self.session.run([LOGITS], feed)[0]
        except Exception as error:  # onnxruntime has a dozen types of its own
            raise CheckpointError(f"{self.path} cannot be computed: {reason(error)}.") from error
        expected = (len(images), len(self.card.classes))
        if logits.shape != expected:
            raise CheckpointError(
                f"{self.path} returns {logits.shape} logits for {len(images)} images, not {expected}."
            )
        return logits


@dataclass(frozen=True)
class _Classifier:
    """A classifier that another program has exported.

    Attributes:
        path: its file.
        form: the form of its images.
        session: onnxruntime's ``InferenceSession``.
        most: the largest batch, in images.
    """

    path: Path
    form: ClassifierForm
    session: Any
    most: int

    def logits(self, images: Pixels) -> npt.NDArray[np.float32]:
        """Returns the first output, (N, classes) float32, for (N, C, H, W) images, scaled as it takes them.

        Raises:
            CheckpointError: onnxruntime cannot compute it, or it is no table with a row for each image.
        """
        size = self.form.batch or len(images)
        outputs = []
        for start in range(0, len(images), max(size, 1)):
            few = images[start : start + size]
            missing = size - len(few)  # the last batch is filled up with copies of its last image
            filled = np.concatenate([few, np.repeat(few[-1:], missing, axis=0)]) if missing else few
            outputs.append(self._run(filled)[: len(few)])
        return np.concatenate(outputs)

    def _run(self, images: Pixels) -> npt.NDArray[np.float32]:
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
            raise CheckpointError(f"{self.path} cannot be computed: {reason(error)}.") from error
        if output.ndim != 2 or len(output) != len(images) or not 2 <= output.shape[1] <= MOST_CLASSES:
            raise CheckpointError(
                f"{self.path} is no image classifier: for {len(images)} images, its output "
                f"{self.form.output!r} has the shape {size_text(output.shape)}."
            )
        return np.asarray(output, np.float32)


def main() -> None:
    """Loads the file and computes requests until the parent closes the socket."""
    descriptor, path, threads, assumed = sys.argv[2:]
    connection = Connection(int(descriptor))
    with contextlib.suppress(EOFError, ConnectionError), _errors_sent(connection, path):
        if assumed:
            network, about = _load_classifier(Path(path), int(threads), Assumed(**json.loads(assumed)))
        else:
            network, about = _load(Path(path), int(threads))
        connection.send_bytes(json.dumps({"about": about}).encode())
        while True:
            request, content = json.loads(connection.recv_bytes()), connection.recv_bytes()
            images = np.frombuffer(content, request["type"]).reshape(request["shape"])
            with _errors_sent(connection, path):
                logits, seconds = _compute(network, images, request["size"])
                connection.send_bytes(json.dumps({"shape": logits.shape, "seconds": seconds}).encode())
                connection.send_bytes(logits.tobytes())


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


def _load(path: Path, threads: int) -> tuple[_Computed, dict[str, Any]]:
    """Returns the network in a file of kdtrain's, and the file's metadata."""
    _limit_memory(_size(path), threads)
    with _time_limit():
        file = read_onnx(path)
        session = _session(path, file.content, threads)
    return _Network(path, file.card, file.images, session, _most(file.cost)), file.about


def _load_classifier(path: Path, threads: int, assumed: Assumed) -> tuple[_Computed, dict[str, Any]]:
    """Returns the classifier in a file of any program, and the form of its images with its classes."""
    _limit_memory(sum(map(_size, path.parent.glob(f"{path.stem}*"))), threads)
    with _time_limit():
        content, form, cost = read_classifier(path, assumed)
        classifier = _Classifier(path, form, _session(path, content, threads), _most(cost))
        # A graph may leave open how many classes it has: an image tells.
        classes = classifier.logits(np.zeros((1, *form.shape), np.float32)).shape[1]
    return classifier, {"form": form.to_json(), "classes": classes}


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


def _most(cost: Cost) -> int:
    """Returns the largest batch, in images, for a graph of this cost."""
    return max(min(IMAGES_AT_ONCE, LARGEST_PEAK // max(cost.peak, 1), _MOST_WORK // max(cost.work, 1)), 1)


def _compute(network: _Computed, images: Pixels, size: int) -> tuple[npt.NDArray[np.float32], list[float]]:
    """Returns (N, classes) float32 logits, and the seconds of each batch of at most ``size`` images."""
    size = min(size, network.most)
    parts, seconds = [], []
    for start in range(0, max(len(images), 1), max(size, 1)):
        with _time_limit():
            start_time = time.perf_counter()
            parts.append(network.logits(images[start : start + size]))
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
