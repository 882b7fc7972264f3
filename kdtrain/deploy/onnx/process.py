"""The parent's side of the process that computes an ONNX file, and the predictor that kdtrain exported.

``worker.py`` is the child's side. Needs no oneflow.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.deploy.onnx.reader import Assumed, OnnxForm
from kdtrain.deploy.onnx.worker import LONGEST
from kdtrain.errors import CheckpointError
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.store.card import ModelCard, read_card

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from kdtrain.deploy.onnx.worker import work; work()"
)
Reply = tuple[npt.NDArray[np.float32], list[float]]
"""(N, classes) logits, and the seconds that each batch of the images took."""

_LONGEST_MESSAGE = 64 << 20  # bytes of a reply


class OnnxProcess:
    """A process that computes one file. The next request restarts it if it has died.

    Several threads may send requests; the process computes them one after the other. It ends with this
    object, and when the parent process ends.

    Args:
        path: the file.
        threads: threads of onnxruntime.
        assumed: decides what a classifier of another program leaves open; None takes kdtrain's files only.

    Attributes:
        form: the form of its images.
        classes: the number of its classes.
        threads: threads of onnxruntime.

    Raises:
        CheckpointError: the file cannot be used.
    """

    def __init__(self, path: Path, threads: int, assumed: Assumed | None = None) -> None:
        self._path, self.threads = path, threads
        self._assumed = "" if assumed is None else json.dumps(asdict(assumed))
        self._lock = threading.Lock()
        self.form, self.classes = self._start()

    def compute(self, images: npt.NDArray[Any], size: int) -> Reply:
        """Returns (N, classes) float32 logits, and the seconds that each batch of the images took.

        Args:
            images: (N, C, H, W), uint8 or float32, pixels 0..255.
            size: images in a batch. A network that needs much memory or time gets smaller batches.

        Raises:
            CheckpointError: the images cannot be computed, or not within the limits.
        """
        request = {"shape": images.shape, "type": images.dtype.name, "size": size}
        with self._lock:
            if self._process.poll() is not None:
                self._restart()
            with contextlib.suppress(ConnectionError):  # the process has died: _receive tells the cause
                self._connection.send_bytes(json.dumps(request).encode())
                self._connection.send_bytes(images.tobytes())
            reply = self._receive()
            logits = np.frombuffer(self._read(), np.float32)
        return logits.reshape(reply["shape"]), reply["seconds"]

    def _start(self) -> tuple[OnnxForm, int]:
        """Starts the process; returns the form of the file's images, and the number of its classes."""
        near, far = socket.socketpair()
        with far:
            numbers = [str(far.fileno()), str(self._path), str(self.threads)]
            arguments = [json.dumps(sys.path), *numbers, self._assumed]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, *arguments],  # -I: nothing from the working directory
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[far.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C goes to the parent only
            )
        self._connection = Connection(near.detach())
        self._end = weakref.finalize(self, _end, self._process, self._connection)
        about = self._receive()["about"]
        form = about["form"]
        tuples = {name: tuple(form[name]) for name in ("shape", "left_open")}
        return OnnxForm(**{**form, **tuples}), about["classes"]

    def _restart(self) -> None:
        self._end()
        if self._start() != (self.form, self.classes):
            self._end()
            raise CheckpointError(f"{self._path} has been replaced: load it again.")

    def _receive(self) -> Any:
        """Returns the JSON of a reply."""
        reply = json.loads(self._read())
        if "error" in reply:
            raise CheckpointError(reply["error"])
        return reply

    def _read(self) -> bytes:
        """Returns a message. Any interruption, such as Ctrl-C, ends the process."""
        try:
            return self._connection.recv_bytes(_LONGEST_MESSAGE)
        except (EOFError, ConnectionError) as error:
            raise CheckpointError(f"{self._path} cannot be computed: {self._cause()}.") from error
        except BaseException:
            self._end()
            raise

    def _cause(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGALRM:
            return f"it takes longer than {LONGEST} seconds"
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return f"its process ended by {how}: the file is damaged, or needs more memory than is allowed"


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    process.kill()
    process.wait()


@dataclass(frozen=True, eq=False, repr=False)
class OnnxModel:
    """A network in an ONNX file, ready to compute; made by ``OnnxModel.load``.

    A separate process computes it, within limits of memory and time. The process ends with this object.

    Attributes:
        path: the file.
        card: the network's images, classes and normalisation.
        about: the file's metadata: the card's entries, and ``precision`` (float32 or int8),
            ``checkpoint_sha256`` and more.
        process: the process that computes it.
    """

    path: Path
    card: ModelCard
    about: dict[str, Any]
    process: OnnxProcess

    @classmethod
    def load(cls, path: Path | str, threads: int = 1) -> OnnxModel:
        """Reads a file.

        Args:
            path: the file.
            threads: threads of onnxruntime.

        Raises:
            CheckpointError: the file is missing, damaged or not one of kdtrain's, refers to other files,
                or needs more memory or time than the limits.
            KdtrainError: onnx or onnxruntime is not installed.
        """
        path = Path(path)
        process = OnnxProcess(path, threads)
        about = process.form.about
        return cls(path, read_card(about, path), about, process)

    def __repr__(self) -> str:
        network = f"{self.precision}, {self.parameters:,} parameters, for {self.card.dataset}"
        return f"<OnnxModel {network} ({self.path})>"

    @property
    def runtime(self) -> str:
        """The library that computes it, and the precision: onnx float32 or onnx int8."""
        return f"onnx {self.precision}"

    @property
    def precision(self) -> str:
        """The type of its weights: float32 or int8."""
        return str(self.about["precision"])

    @property
    def parameters(self) -> int:
        """The number of trainable values."""
        return int(self.about["parameters"])

    def logits(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns (N, classes) float32 logits of (N, C, H, W) images, pixels 0..255 of any dtype.

        Raises:
            CheckpointError: onnxruntime cannot compute them. Files that kdtrain wrote do not cause this.
        """
        return np.concatenate([logits for logits, _ in self._replies(images, IMAGES_AT_ONCE)])

    def seconds(self, images: npt.NDArray[Any], size: int) -> list[float]:
        """Returns the time in seconds that each batch of ``size`` images takes, from pixels to logits.

        Batches are smaller where a network needs much memory or time.

        Args:
            images: (N, C, H, W), pixels 0..255 of any dtype.
            size: images in a batch.

        Raises:
            CheckpointError: as ``logits``.
        """
        return [time for _, seconds in self._replies(images, size) for time in seconds]

    def reloaded(self) -> OnnxModel:
        """Returns the file read again, with a process of its own and as many threads."""
        return OnnxModel.load(self.path, self.process.threads)

    def _replies(self, images: npt.NDArray[Any], size: int) -> Iterator[Reply]:
        if images.dtype != np.uint8:
            images = images.astype(np.float32)
        for start in range(0, max(len(images), 1), IMAGES_AT_ONCE):
            yield self.process.compute(images[start : start + IMAGES_AT_ONCE], size)
