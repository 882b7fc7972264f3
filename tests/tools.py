"""Small data sets in files, kdtrain in a process, and a reader of TensorBoard's files of its own."""

from __future__ import annotations

import gzip
import json
import os
import struct
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboardX.proto.event_pb2 import Event

from kdtrain.data.dataset import Dataset, Split
from tests import warm

ROOT = Path(__file__).parents[1]
TRAIN, TEST = 1500, 300
Scalars = dict[str, dict[int, float]]


def write_digits(folder: Path, mnist: Dataset, train: int = TRAIN) -> Path:
    """Writes the first images of MNIST as plain IDX files: 28x28 pixels, 10 classes."""
    folder.mkdir()
    for name, split, count in (("train", mnist.train, train), ("t10k", mnist.test, TEST)):
        _write_idx(folder / f"{name}-images-idx3-ubyte", split.images[:count, 0])
        _write_idx(folder / f"{name}-labels-idx1-ubyte", split.labels[:count])
    return folder


def write_tiles(folder: Path, mnist: Dataset) -> Path:
    """Writes digits 0 to 3 at half the size as gzipped IDX files: 12x12 pixels, 4 classes.

    The convolutional teacher's step takes a tenth of the time that it takes on whole digits.
    """
    folder.mkdir()
    for name, split, count in (("train", mnist.train, TRAIN), ("t10k", mnist.test, TEST)):
        first = _first(split, count)
        halved = first.images[:, 0, 2:26, 2:26].reshape(count, 12, 2, 12, 2).mean((2, 4))
        _write_idx(folder / f"{name}-images-idx3-ubyte.gz", halved)
        _write_idx(folder / f"{name}-labels-idx1-ubyte.gz", first.labels)
    return folder


def idx_bytes(array: npt.NDArray[np.uint8]) -> bytes:
    """Returns IDX's format as its description says: 00 00, type, dimensions, big-endian lengths, data."""
    lengths = b"".join(length.to_bytes(4, "big") for length in array.shape)
    return bytes([0, 0, 0x08, array.ndim]) + lengths + array.tobytes()


def start_kdtrain(*words: str | Path, cwd: Path, **variables: str) -> subprocess.Popen[str]:
    """Starts the command line in a process of its own, with pipes for its output."""
    return warm.Popen(
        [sys.executable, "-m", "kdtrain", *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Waits until a condition is true; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"nothing has happened for {seconds} s"
        time.sleep(0.02)


def is_alive(process: int) -> bool:
    """Returns whether a process runs. One that has ended and that its parent has not waited for does not."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def read_result(run: Path) -> Any:
    return json.loads((run / "result.json").read_text())


def read_tested(run: Path) -> Any:
    """Returns the tested model in the record of a fit."""
    [model] = read_result(run)["models"]
    return model


def read_scalars(directory: Path) -> Scalars:
    """Returns every curve in the event files of a run: values by tag and step."""
    scalars: Scalars = defaultdict(dict)
    for file in sorted(directory.glob("events.*")):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            event = Event.FromString(data[12 : 12 + length])  # four bytes of checksum before and after
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars[value.tag][event.step] = value.simple_value
            data = data[16 + length :]
    return dict(scalars)


def files_in(folder: Path) -> dict[str, bytes]:
    """Returns the content of all files below ``folder`` by path, but for what Python keeps of modules."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _first(split: Split, count: int) -> Split:
    return split.take(np.flatnonzero(split.labels < 4)[:count])


def _write_idx(path: Path, array: npt.NDArray[np.generic]) -> None:
    data = idx_bytes(array.astype(np.uint8))
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
