"""Types and helpers of the tests that run the command line; the fixtures are in tests/conftest.py."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtrain.data.dataset import Dataset
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.card import model_card
from kdtrain.store.checkpoint import save_model, snapshot
from tests import warm
from tests.tools import ROOT, start_kdtrain, wait_until

Finished = subprocess.CompletedProcess[str]
CallKdtrain = Callable[..., Finished]

LOGDIR = Path("läufe [b] 1")  # blanks, letters beyond ASCII, and characters of markup
MODES = ("teacher", "student_kd", "student")
EPOCH = re.compile(
    r"(teacher|student_kd|student|student_ls|student_hard)(?:,[a-z]+=[\d.,=a-z]+)?(?:/\d+)? +(\d+)/(\d+)  "
    r"loss [\d.]+  "
    r"accuracy [\d.]+%  cross-entropy [\d.]+  [\d.]+ s"
    r"(?:  about [\d:]+ left)?"
)


@dataclass(frozen=True)
class Call:
    """Runs kdtrain with some words, which must succeed but for ``any_code``.

    Attributes:
        start: runs the words in a folder.
        folder: the folder, where ``cwd`` is not given.
    """

    start: Callable[..., Finished]
    folder: Path | None = None

    def __call__(self, *words: object, **options: Any) -> Finished:
        finished = self.any_code(*words, **options)
        assert finished.returncode == 0, finished.stderr
        return finished

    def any_code(self, *words: object, cwd: Path | None = None, **options: Any) -> Finished:
        folder = cwd or self.folder
        assert folder is not None
        return self.start(*words, cwd=folder, **options)


@dataclass(frozen=True)
class Fitted:
    """One finished run of each mode, in this order, each in a process of its own.

    Attributes:
        folder: the folder that they were started in.
        flags: the flags of all runs, without the mode.
        processes: the ended processes, by mode.
    """

    folder: Path
    flags: tuple[str | Path, ...]
    processes: dict[str, Finished] = field(default_factory=dict)

    def run(self, mode: str) -> Path:
        return self.folder / LOGDIR / mode / "version_0"

    def model(self, mode: str) -> Path:
        return self.folder / LOGDIR / "models" / f"{mode}.safetensors"


def run(*command: str | Path, cwd: Path = ROOT, **variables: str) -> Finished:
    """Runs a command that can import kdtrain, without a user's settings of OneFlow and OpenBLAS."""
    return warm.run(list(map(str, command)), **_options(cwd, variables))


def run_python(code: str, *, cwd: Path = ROOT, **variables: str) -> Finished:
    """Runs code in the same way, but in a real process: for what an import does, or must not do."""
    return subprocess.run([sys.executable, "-c", code], **_options(cwd, variables))


def _options(cwd: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    libraries = ("OPENBLAS_", "GLOG_", "ONEFLOW_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(libraries)}
    environment = kept | {"PYTHONPATH": str(ROOT)} | dict(variables)
    return {"cwd": cwd, "env": environment, "capture_output": True, "text": True, "timeout": 400}


def signal_when_ready(
    folder: Path, number: signal.Signals, ready: Callable[[int], object], *words: str | Path
) -> Finished:
    """Starts ``kdtrain fit``, sends it a signal once it is ``ready``, and expects it to end within 5 s.

    ``ready`` is called with the number of the process.
    """
    with start_kdtrain("fit", *words, cwd=folder) as process:
        try:
            wait_until(lambda: ready(process.pid) or process.poll() is not None)
            process.send_signal(number)
            out, err = process.communicate(timeout=5)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def untrained_teacher(path: Path, dataset: Dataset, arch: str = "teacher_cnn") -> Path:
    """Writes a checkpoint of a network with its initial weights."""
    flow.manual_seed(0)
    model = build_model(arch, dataset.image_shape, dataset.num_classes)
    save_model(path, snapshot(model), model_card("teacher", arch, dataset))
    return path


def assert_explained(finished: Finished, code: int, *words: str) -> None:
    """Asserts that a command failed with ``code`` and one line that contains ``words``."""
    assert (finished.returncode, finished.stdout) == (code, "")
    lines = [line for line in finished.stderr.splitlines() if not EPOCH.fullmatch(line)]
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("kdtrain: ")
    for word in words:
        assert word in lines[0]
