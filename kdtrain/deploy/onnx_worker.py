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
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Normalization
from kdtrain.deploy.onnx_cost import LARGEST_PEAK, reason
from kdtrain.deploy.onnx_reader import INPUTS, LOGITS, import_onnx, read_onnx
from kdtrain.errors import CheckpointError, KdtrainError
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.store.card import ModelCard

LONGEST = 30
"""Limit in seconds for loading a file, and for computing one batch."""

_MEMORY = 384 << 20  # bytes, beyond what the interpreter and its libraries use
_MEMORY_PER_BYTE = 5  # bytes more for each byte of the file
_MEMORY_PER_THREAD = 16 << 20  # bytes more for each thread, for its stack
_MOST_WORK = 20_000_000_000  # multiply-adds of a batch of several images
_FATAL = 4  # severity of onnxruntime's log; whatever is less severe is raised as an exception as well

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class _Network:
    """A network that onnxruntime computes.

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


def main() -> None:
    """Loads the file and computes requests until the parent closes the socket."""
    descriptor, path, threads = sys.argv[2:]
    connection = Connection(int(descriptor))
    with contextlib.suppress(EOFError, ConnectionError), _errors_sent(connection, path):
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


def _load(path: Path, threads: int) -> tuple[_Network, dict[str, Any]]:
    """Returns the network in a file, and the file's metadata."""
    _, onnxruntime = import_onnx()
    _limit_memory(path, threads)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = _FATAL
    with _time_limit():
        file = read_onnx(path)
        try:
            session = onnxruntime.InferenceSession(file.content, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise CheckpointError(f"{path} cannot be used by onnxruntime: {reason(error)}.") from error
    most = min(IMAGES_AT_ONCE, LARGEST_PEAK // max(file.cost.peak, 1), _MOST_WORK // max(file.cost.work, 1))
    return _Network(path, file.card, file.images, session, max(most, 1)), file.about


def _compute(network: _Network, images: Pixels, size: int) -> tuple[npt.NDArray[np.float32], list[float]]:
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


def _limit_memory(path: Path, threads: int) -> None:
    """Sets RLIMIT_DATA to what this process uses now plus what a network may use."""
    now = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    size = path.stat().st_size if path.is_file() else 0
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = now + _MEMORY + _MEMORY_PER_BYTE * size + _MEMORY_PER_THREAD * threads
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
