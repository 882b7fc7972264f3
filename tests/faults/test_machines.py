"""Fits on two machines: the result of one process, and errors that name the machine that was lost."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from kdtrain.store.checkpoint import load_tensors
from tests.cli.conftest import Call
from tests.faults.machines import ADDRESSES, Fit, Machines, obstacle
from tests.tools import files_in, read_result

REASON = obstacle()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")

RUN = Path("logs/student/version_0")
SGD = (
    *("--recipe=none", "--mode", "student", "--val-size", "300", "--optimizer", "sgd", "--lr", "0.05"),
    *("--augment", "shift=2,flip,mixup=0.4"),
)
SILENCE = "2.5"  # seconds
PLUGIN = "slow.py:Slow"


@pytest.fixture
def machines() -> Iterator[Machines]:
    with Machines() as machines:
        yield machines


def train(
    machines: Machines,
    folder: Path,
    tiles: Path,
    epochs: int = 500,
    launcher: bool = False,
    silence: str = SILENCE,
) -> list[Fit]:
    """Starts a slow fit that two machines share, on batches of 2 x 32, and waits until both train."""
    words = (*SGD, "--data-dir", tiles, "--batch-size", "32", "--epochs", str(epochs), "--plugin", PLUGIN)
    fits = [
        machines.start(rank, folder / str(rank), *words, launcher=launcher, KDTRAIN_SILENCE=silence)
        for rank in (0, 1)
    ]
    for fit in fits:
        fit.worker()
    return fits


def assert_ended(fit: Fit, peer: int, seconds: float) -> None:
    """Asserts that a side has ended with one line that names the other, and has left nothing behind."""
    assert fit.wait(seconds) == 1
    assert len(fit.said) == 1
    assert f"process {peer} ({ADDRESSES[peer]})" in fit.said[0]
    assert list((fit.folder / "tmp").iterdir()) == []


def status(fit: Fit) -> str:
    return str(read_result(fit.folder / RUN)["status"])


def assert_same_training(fit: Fit, alone: Path) -> None:
    tensors, _ = load_tensors(fit.folder / RUN / "checkpoints/last.safetensors")
    expected, _ = load_tensors(alone / RUN / "checkpoints/last.safetensors")
    for name, array in expected.items():
        # Above 1, float32 has no finer steps.
        np.testing.assert_allclose(tensors[name].astype(float), array.astype(float), rtol=1e-7, atol=1e-7)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, tiles: Path, spawn: Call) -> Path:
    """A folder where one process has trained on batches of 64."""
    folder = tmp_path_factory.mktemp("alone")
    words = (*SGD, "--batch-size", "64", "--epochs", "2", "--data-dir", tiles)
    spawn("fit", *words, cwd=folder)
    return folder


def test_two_machines_train_as_one_process_also_when_the_cable_is_cut_for_a_while(
    machines: Machines, tmp_path: Path, tiles: Path, alone: Path
) -> None:
    fits = train(machines, tmp_path, tiles, epochs=2, launcher=True)
    machines.cut(1)
    time.sleep(1)
    machines.cut(1, cut=False)
    assert [fit.wait(30) for fit in fits] == [0, 0]
    assert "test accuracy" in (fits[0].folder / "stdout").read_text()
    assert files_in(fits[1].folder / "logs") == {}
    assert_same_training(fits[0], alone)


def test_a_cable_that_stays_cut_ends_both_sides(machines: Machines, tmp_path: Path, tiles: Path) -> None:
    fits = train(machines, tmp_path, tiles)
    machines.cut(1)
    for rank in (0, 1):
        assert_ended(fits[rank], 1 - rank, 15)
    assert status(fits[0]) == "failed"


@pytest.mark.parametrize("victim", [0, 1])
def test_a_stopped_process_ends_both_sides(
    machines: Machines, tmp_path: Path, tiles: Path, victim: int
) -> None:
    fits = train(machines, tmp_path, tiles)
    fits[victim].signal(signal.SIGSTOP, "worker")
    for rank in (0, 1):
        assert_ended(fits[rank], 1 - rank, 15)
    assert status(fits[0]) == "failed"


@pytest.mark.parametrize("victim", [0, 1])
def test_the_other_side_names_the_one_that_was_killed(
    machines: Machines, tmp_path: Path, tiles: Path, victim: int
) -> None:
    fits = train(machines, tmp_path, tiles)
    fits[victim].signal(signal.SIGKILL, "all")
    assert_ended(fits[1 - victim], victim, 15)
    left = [name for name in files_in(fits[0].folder) if name.endswith(".tmp")]
    assert left == []


def test_ctrl_c_ends_both_sides(machines: Machines, tmp_path: Path, tiles: Path) -> None:
    fits = train(machines, tmp_path, tiles)
    fits[1].signal(signal.SIGINT, "group")
    assert fits[1].wait(5) == 130
    assert len(fits[1].said) == 1
    assert "--resume" not in fits[1].said[0]  # rank 1 has no run directory
    assert_ended(fits[0], 1, 5)
    assert status(fits[0]) == "failed"


def test_ctrl_c_ends_a_side_that_waits_for_the_other(machines: Machines, tmp_path: Path, tiles: Path) -> None:
    fits = train(machines, tmp_path, tiles)
    fits[1].signal(signal.SIGSTOP, "all")
    time.sleep(0.5)
    fits[0].signal(signal.SIGINT, "group")
    assert fits[0].wait(5) == 130
    assert status(fits[0]) == "interrupted"


@pytest.mark.parametrize("victim", [0, 1])
def test_ctrl_c_ends_each_side_within_5_seconds_after_the_cable_was_cut(
    machines: Machines, tmp_path: Path, tiles: Path, victim: int
) -> None:
    fits = train(machines, tmp_path, tiles, launcher=True, silence="40")
    machines.cut(victim)
    time.sleep(1)  # both sides wait for each other
    for fit in (fits[victim], fits[1 - victim]):
        fit.signal(signal.SIGINT, "group")
        fit.wait(5)
        assert "interrupted" in "".join(fit.said), (fit.folder / "stderr").read_text()
    assert status(fits[0]) == "interrupted"


def test_a_killed_launcher_ends_its_process(machines: Machines, tmp_path: Path, tiles: Path) -> None:
    fits = train(machines, tmp_path, tiles, launcher=True)
    fits[0].process.kill()
    assert fits[0].wait(5) == -signal.SIGKILL
    assert_ended(fits[1], 0, 5)


def test_different_settings_are_refused_on_both_sides(
    machines: Machines, tmp_path: Path, tiles: Path
) -> None:
    words = (*SGD, "--data-dir", tiles, "--epochs")
    fits = [machines.start(rank, tmp_path / str(rank), *words, str(3 + rank)) for rank in (0, 1)]
    assert [fit.wait(20) for fit in fits] == [2, 1]
    for fit in fits:
        assert len(fit.said) == 1
        assert re.search(r"--epochs\b.*\b3\b.*\b4\b", fit.said[0])
        assert ADDRESSES[1] in fit.said[0]
    assert files_in(fits[0].folder).keys() <= {"stdout", "stderr", "slow.py"}
