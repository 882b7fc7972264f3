"""The process that computes an ONNX file (``onnx_worker.py``), seen from the one that asks it."""

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
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.deploy.onnx_worker import LONGEST
from kdtrain.errors import CheckpointError

_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from kdtrain.deploy.onnx_worker import main; main()"
)
Answer = tuple[npt.NDArray[np.float32], list[float]]
"""Logits (N, classes), and the seconds that each portion of the images took."""

_LONGEST_MESSAGE = 64 << 20  # bytes of an answer


class OnnxProcess:
    """A process that computes one file; it is started anew when it is asked after it has died.

    Several threads may ask: they are answered one after the other. The process ends with this object, or
    when the process that holds this object has ended.

    Args:
        path: the file.
        threads: how many onnxruntime computes with.

    Attributes:
        about: all that the file says of itself.

    Raises:
        CheckpointError: the file cannot be used.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self._path, self._threads = path, threads
        self._lock = threading.Lock()
        self.about = self._start()

    def ask(self, images: npt.NDArray[Any], size: int) -> Answer:
        """Returns logits (N, classes) of images, and the seconds that each portion of them took.

        Args:
            images: (N, C, H, W), uint8 or float32, pixels 0..255.
            size: images of a portion, which is computed at one time; it has fewer of those that take much
                memory or time.

        Raises:
            CheckpointError: they cannot be computed, or not within the limits.
        """
        question = {"shape": images.shape, "type": images.dtype.name, "size": size}
        with self._lock:
            if self._process.poll() is not None:
                self._restart()
            with contextlib.suppress(ConnectionError):  # it has died; there is no answer then
                self._connection.send_bytes(json.dumps(question).encode())
                self._connection.send_bytes(images.tobytes())
            answer = self._receive()
            logits = np.frombuffer(self._read(), np.float32)
        return logits.reshape(answer["shape"]), answer["seconds"]

    def _start(self) -> Any:
        """Starts the process, and returns what its file says of itself."""
        near, far = socket.socketpair()
        with far:
            words = [json.dumps(sys.path), str(far.fileno()), str(self._path), str(self._threads)]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-c", _START, *words],  # -I: nothing is imported from this folder
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
                pass_fds=[far.fileno()],
                start_new_session=True,  # a terminal's Ctrl-C is for whoever asks
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
        """Returns the JSON that the process answers with."""
        answer = json.loads(self._read())
        if "error" in answer:
            raise CheckpointError(answer["error"])
        return answer

    def _read(self) -> bytes:
        """Returns a message. Whatever interrupts this, such as Ctrl-C, ends the process."""
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
        return f"its process was ended by {how}: it is damaged, or needs more memory than is allowed"


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    connection.close()
    process.kill()
    process.wait()
