"""Hostile ONNX files: refused in seconds, below a gigabyte, by every command that reads ONNX files."""

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
SECONDS = 30  # on a busy machine; on an idle one each takes less than two
SAFE = 3 << 30  # bytes: a limit that protects the machine that runs this test

# Computes the largest batch.
COMPUTE = """
import json, resource, sys, time
import numpy as np
from kdtrain.errors import KdtrainError
from kdtrain.deploy.onnx_model import OnnxModel
for path in sys.argv[1:]:
    began, error_text = time.monotonic(), None
    try:
        OnnxModel.load(path).logits(np.full((250, 1, 28, 28), 3, np.uint8))
    except KdtrainError as error:
        error_text = str(error)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([error_text, time.monotonic() - began, peak + own]), flush=True)
"""


MEASURE = """
import pathlib, resource, subprocess, sys
code = subprocess.run([sys.executable, *sys.argv[1:]]).returncode
pathlib.Path("kilobytes").write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


@dataclass(frozen=True)
class Ended:
    """A process that has ended: exit code, output, seconds, and the peak memory of its largest descendant."""

    code: int
    out: str
    err: str
    seconds: float
    kilobytes: int


def run(*words: str | Path, cwd: Path) -> Ended:
    """Runs Python, and measures the memory of it and of the processes that it starts."""
    began = time.monotonic()
    # A small process in between: a forked child's peak memory begins with that of pytest.
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
    """Returns the error message, the seconds and the KB of the two processes, by graph."""
    folder = tmp_path_factory.mktemp("graphs")
    ended = run("-c", COMPUTE, *(write(folder, name) for name in GRAPHS), cwd=folder)
    lines = [json.loads(line) for line in ended.out.splitlines()]
    return dict(zip(GRAPHS, lines, strict=False))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_needs_gigabytes_or_minutes_is_refused(
    answers: dict[str, tuple[str | None, float, int]], name: str
) -> None:
    error_text, seconds, kilobytes = answers[name]
    assert error_text is not None, "it was computed"
    assert f"/{list(GRAPHS).index(name)}.onnx" in error_text
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
def test_every_command_refuses_it_with_one_line(words: tuple[str, ...], name: str, tmp_path: Path) -> None:
    ended = run("-m", "kdtrain", *words, write(tmp_path, name), cwd=tmp_path)
    assert (ended.code, ended.out) == (1, "")
    (line,) = ended.err.splitlines()
    assert line.startswith(f"kdtrain: {tmp_path}/")
    assert ended.seconds < SECONDS
    assert ended.kilobytes < GIGABYTE


def test_a_sparse_file_of_2_gb_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.onnx").open("wb") as file:
        file.truncate(2**31)
    ended = run("-c", COMPUTE, tmp_path / "sparse.onnx", cwd=tmp_path)
    error_text, _, kilobytes = json.loads(ended.out)
    assert "2,147,483,647" in error_text
    assert kilobytes < GIGABYTE


def test_the_same_operators_are_allowed_at_a_small_size(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    path.write_bytes(network([node("Expand", "one size")], {"one": ONE, "size": [100]}).SerializeToString())
    assert OnnxModel.load(path).card.classes[0] == "0"
