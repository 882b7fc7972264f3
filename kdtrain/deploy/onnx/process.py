"""The parent's side of the process that computes an ONNX file; ``onnx_worker.py`` is the child's side."""

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
from dataclasses import asdict
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.deploy.onnx.classifier import Assumed
from kdtrain.deploy.onnx.worker import LONGEST
from kdtrain.errors import CheckpointError

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from kdtrain.deploy.onnx.worker import main; main()"
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
        about: the file's metadata; of a classifier, the ``form`` of its images and the number of ``classes``.
        threads: threads of onnxruntime.

    Raises:
        CheckpointError: the file cannot be used.
    """

    def __init__(self, path: Path, threads: int, assumed: Assumed | None = None) -> None:
        self._path, self.threads = path, threads
        self._assumed = "" if assumed is None else json.dumps(asdict(assumed))
        self._lock = threading.Lock()
        self.about = self._start()

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

    def _start(self) -> Any:
        """Starts the process, and returns the file's metadata."""
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
        return self._receive()["about"]

    def _restart(self) -> None:
        self._end()
        if self._start() != self.about:
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
