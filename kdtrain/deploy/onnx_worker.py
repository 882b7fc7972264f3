"""Computes one ONNX file in a process of its own, within limits of memory and time.

``onnx_process.py`` starts it and asks it, over a socket: a question is JSON, then the pixels; an answer is
JSON, then the logits. No stranger's file is opened by onnx or onnxruntime anywhere else.
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
"""Seconds that a file may take to load, and one portion of images to be computed."""

_MEMORY = 384 << 20  # bytes that may be used beside the interpreter's and its libraries',
_FOR_WEIGHTS = 5  # for each byte of the file,
_FOR_THREADS = 16 << 20  # and for each thread, which has a stack
_MOST_WORK = 20_000_000_000  # and no more multiply-adds than these, or one's
_FATAL = 4  # of onnxruntime's severities: all else it says is raised as well

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class _Network:
    """A network that onnxruntime computes.

    Attributes:
        path: its file.
        card: what it is for.
        images: the name of its input.
        session: onnxruntime's ``InferenceSession``.
        most: how many images are computed at one time.
    """

    path: Path
    card: ModelCard
    images: str
    session: Any
    most: int

    def logits(self, images: Pixels) -> npt.NDArray[np.float32]:
        """Returns logits (N, classes)."""
        if self.images == INPUTS:
            images = Normalization(self.card.mean, self.card.std).apply(images)
        feed = {self.images: np.ascontiguousarray(images, np.float32)}
        try:
            logits: npt.NDArray[np.float32] = self.session.run([LOGITS], feed)[0]
        except Exception as error:  # onnxruntime has a dozen types of its own
            raise CheckpointError(f"{self.path} cannot be computed: {reason(error)}.") from error
        wanted = (len(images), len(self.card.classes))
        if logits.shape != wanted:
            raise CheckpointError(
                f"{self.path} answers {len(images)} images with numbers of shape {logits.shape}, "
                f"not {wanted}."
            )
        return logits


def main() -> None:
    """Loads the file and answers until nobody asks any more."""
    descriptor, path, threads = sys.argv[2:]
    connection = Connection(int(descriptor))
    with contextlib.suppress(EOFError, ConnectionError), _errors_sent(connection, path):
        network, about = _load(Path(path), int(threads))
        connection.send_bytes(json.dumps({"about": about}).encode())
        while True:
            question, content = json.loads(connection.recv_bytes()), connection.recv_bytes()
            images = np.frombuffer(content, question["type"]).reshape(question["shape"])
            with _errors_sent(connection, path):
                logits, seconds = _answer(network, images, question["size"])
                connection.send_bytes(json.dumps({"shape": logits.shape, "seconds": seconds}).encode())
                connection.send_bytes(logits.tobytes())


@contextlib.contextmanager
def _errors_sent(connection: Connection, path: str) -> Iterator[None]:
    """Sends what goes wrong in the block instead of raising it."""
    try:
        yield
    except (EOFError, ConnectionError):
        raise  # nobody is there to be told
    except Exception as error:
        said = str(error) if isinstance(error, KdtrainError) else f"{path} is damaged: {reason(error)}."
        connection.send_bytes(json.dumps({"error": said}).encode())


def _load(path: Path, threads: int) -> tuple[_Network, dict[str, Any]]:
    """Returns the network in a file, and all that the file says of itself."""
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


def _answer(network: _Network, images: Pixels, size: int) -> tuple[npt.NDArray[np.float32], list[float]]:
    """Returns logits (N, classes), and the seconds that each portion took, from pixels to logits."""
    size = min(size, network.most)
    parts, seconds = [], []
    for start in range(0, max(len(images), 1), max(size, 1)):
        with _time_limit():
            began = time.perf_counter()
            parts.append(network.logits(images[start : start + size]))
            seconds.append(time.perf_counter() - began)
    return np.concatenate(parts), seconds


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    """Ends this process by SIGALRM, also where it computes in C, if the block takes too long."""
    signal.alarm(LONGEST)
    yield
    signal.alarm(0)


def _limit_memory(path: Path, threads: int) -> None:
    """Makes the kernel refuse memory to this process, beyond what it has now and what a network may take."""
    now = int(Path("/proc/self/statm").read_text().split()[5]) * resource.getpagesize()
    size = path.stat().st_size if path.is_file() else 0
    _, most = resource.getrlimit(resource.RLIMIT_DATA)
    limit = now + _MEMORY + _FOR_WEIGHTS * size + _FOR_THREADS * threads
    limit = limit if most == resource.RLIM_INFINITY else min(limit, most)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
