"""ONNX files from strangers: refused in seconds, below a gigabyte, by every command that reads them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from kdtrain.deploy.onnx_model import OnnxModel
from tests.deploy.hostile_graphs import GRAPHS, ONE, network, node
from tests.tools import ROOT

GIGABYTE = 1 << 20  # KB
SECONDS = 30  # of a busy machine; on a quiet one each takes less than two
SAFE = 3 << 30  # bytes: whatever a file does to kdtrain, it does not do it to this machine

# Asks about as many images as are ever computed at one time.
ASK = """
import json, resource, sys, time
import numpy as np
from kdtrain.errors import KdtrainError
from kdtrain.deploy.onnx_model import OnnxModel
for path in sys.argv[1:]:
    began, said = time.monotonic(), None
    try:
        OnnxModel.load(path).logits(np.full((250, 1, 28, 28), 3, np.uint8))
    except KdtrainError as error:
        said = str(error)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([said, time.monotonic() - began, peak + own]), flush=True)
"""


MEASURE = """
import pathlib, resource, subprocess, sys
code = subprocess.run([sys.executable, *sys.argv[1:]]).returncode
pathlib.Path("kilobytes").write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code, what it said, how long it took, and the memory of its largest."""

    code: int
    out: str
    err: str
    seconds: float
    kilobytes: int


def run(*words: str | Path, cwd: Path) -> Ended:
    """Runs Python, and sees how much memory it and the processes that it starts take."""
    began = time.monotonic()
    # A small process in between: what pytest takes would count as memory of a process that it starts.
    done = subprocess.run(
        [sys.executable, "-I", "-c", MEASURE, *map(str, words)], cwd=cwd, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, preexec_fn=limit, check=False,
    )  # fmt: skip
    took = time.monotonic() - began
    return Ended(done.returncode, done.stdout, done.stderr, took, int((cwd / "kilobytes").read_text()))


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (SAFE, SAFE))
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))


def write(folder: Path, name: str) -> Path:
    path = folder / f"{list(GRAPHS).index(name)}.onnx"
    path.write_bytes(GRAPHS[name]().SerializeToString())
    return path


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str | None, float, int]]:
    """What came of each: what was said, the seconds, and the KB of the two processes; all in one process."""
    folder = tmp_path_factory.mktemp("graphs")
    ended = run("-c", ASK, *(write(folder, name) for name in GRAPHS), cwd=folder)
    lines = [json.loads(line) for line in ended.out.splitlines()]
    return dict(zip(GRAPHS, lines, strict=False))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_asks_for_gigabytes_or_minutes_is_refused(
    answers: dict[str, tuple[str | None, float, int]], name: str
) -> None:
    said, seconds, kilobytes = answers[name]
    assert said is not None, "it was computed"
    assert f"/{list(GRAPHS).index(name)}.onnx" in said
    assert seconds < SECONDS
    assert kilobytes < GIGABYTE


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("infer", "--picture-index", "0", "--checkpoint"), "Expand of a constant"),
        (("eval",), "Expand by images"),
        (("bench",), "MatMul of small ones"),
        (("serve", "--port", "0"), "Concat of shapes"),
    ],
    ids=["infer", "eval", "bench", "serve"],
)
def test_every_command_refuses_it_in_one_sentence(words: tuple[str, ...], name: str, tmp_path: Path) -> None:
    ended = run("-m", "kdtrain", *words, write(tmp_path, name), cwd=tmp_path)
    assert (ended.code, ended.out) == (1, "")
    (line,) = ended.err.splitlines()
    assert line.startswith(f"kdtrain: {tmp_path}/")
    assert ended.seconds < SECONDS
    assert ended.kilobytes < GIGABYTE


def test_a_file_of_2_gb_of_nothing_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.onnx").open("wb") as file:
        file.truncate(2**31)
    ended = run("-c", ASK, tmp_path / "sparse.onnx", cwd=tmp_path)
    said, _, kilobytes = json.loads(ended.out)
    assert "2,147,483,647" in said
    assert kilobytes < GIGABYTE


def test_a_graph_that_is_refused_by_its_size_alone_is_computed_when_it_is_small(tmp_path: Path) -> None:
    """What is refused is the size: the same operators do what they should."""
    path = tmp_path / "small.onnx"
    path.write_bytes(network([node("Expand", "one size")], {"one": ONE, "size": [100]}).SerializeToString())
    assert OnnxModel.load(path).card.classes[0] == "0"
