"""What the tests of the command line share: small data, and runs that many tests look at."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from kdtrain.cli import main
from kdtrain.data.dataset import Dataset
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.card import model_card
from kdtrain.store.checkpoint import save_model, snapshot
from tests.conftest import RunKdtrain
from tests.tools import ROOT, write_digits, write_tiles

Finished = subprocess.CompletedProcess[str]
CallKdtrain = Callable[..., Finished]

LOGDIR = Path("läufe [b] 1")  # blanks, letters beyond ASCII, and what could be taken for markup
MODES = ("teacher", "student_kd", "student")
EPOCH = re.compile(
    r"(teacher|student_kd|student|student_ls)(?:,[a-z]+=[\d.,=a-z]+)?(?:/\d+)? +(\d+)/(\d+)  loss [\d.]+  "
    r"accuracy [\d.]+%  cross-entropy [\d.]+  [\d.]+ s"
)


@dataclass(frozen=True)
class Fitted:
    """One run of each mode, in this order, in processes of their own.

    Attributes:
        folder: where they were started.
        flags: what all of them were given, but for the mode.
        processes: how they ended, by mode.
    """

    folder: Path
    flags: tuple[str | Path, ...]
    processes: dict[str, Finished] = field(default_factory=dict)

    def run(self, mode: str) -> Path:
        return self.folder / LOGDIR / mode / "version_0"

    def model(self, mode: str) -> Path:
        return self.folder / LOGDIR / "models" / f"{mode}.safetensors"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Path:
    return write_digits(tmp_path_factory.mktemp("data") / "digits", mnist)


@pytest.fixture(scope="session")
def tiles(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Path:
    return write_tiles(tmp_path_factory.mktemp("data") / "tiles", mnist)


@pytest.fixture(scope="session")
def fitted(tmp_path_factory: pytest.TempPathFactory, tiles: Path, run_kdtrain: RunKdtrain) -> Fitted:
    flags = ("--data-dir", tiles, "--val-size", "300", "--epochs", "3", "--batch-size", "64")
    fitted = Fitted(tmp_path_factory.mktemp("fitted"), flags)
    for mode in MODES:
        fitted.processes[mode] = run_kdtrain(
            "fit", "--mode", mode, "--logdir", LOGDIR, *flags, cwd=fitted.folder
        )
    return fitted


@pytest.fixture
def call_kdtrain(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[CallKdtrain]:
    """Runs the command line in this process, which has oneflow loaded already."""

    def call(*words: str | Path, cwd: Path) -> Finished:
        monkeypatch.chdir(cwd)
        capfd.readouterr()
        arguments = [str(word) for word in words]
        code = main(arguments)
        out, err = capfd.readouterr()
        return subprocess.CompletedProcess(arguments, code, out, err)

    handler = signal.getsignal(signal.SIGTERM)
    yield call
    signal.signal(signal.SIGTERM, handler)


def signal_when_ready(
    folder: Path, number: signal.Signals, ready: Callable[[int], object], *words: str | Path
) -> Finished:
    """Starts ``kdtrain fit``, sends it a signal once it is ``ready``, and expects it to end within 5 s.

    ``ready`` is asked with the number of the process.
    """
    command = [sys.executable, "-m", "kdtrain", "fit", *map(str, words)]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while not ready(process.pid) and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.02)
            process.send_signal(number)
            out, err = process.communicate(timeout=5)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def untrained_teacher(path: Path, dataset: Dataset, arch: str = "teacher_cnn") -> Path:
    """Writes a checkpoint of a network with its first weights: all that a test of reading needs."""
    flow.manual_seed(0)
    model = build_model(arch, dataset.image_shape, dataset.num_classes)
    save_model(path, snapshot(model), model_card("teacher", arch, dataset))
    return path


def assert_explained(finished: Finished, code: int, *words: str) -> None:
    """Asserts that a command failed as it should: with ``code``, and one line that holds ``words``."""
    assert (finished.returncode, finished.stdout) == (code, "")
    lines = [line for line in finished.stderr.splitlines() if not EPOCH.fullmatch(line)]
    assert len(lines) == 1, finished.stderr
    assert lines[0].startswith("kdtrain: ")
    for word in words:
        assert word in lines[0]
