"""``--resume``: an interrupted run ends bit for bit like one that was not interrupted."""

from __future__ import annotations

import gzip
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pytest

from tests.cli.conftest import MODES, Call, Fitted, assert_explained, signal_when_ready
from tests.runs import assert_same_run, count_points, metrics
from tests.tools import files_in, read_result

# Kills its own process: in the third epoch, or at a given moment of the end of the second.
KILLER = """
import os, signal
from pathlib import Path

from kdtrain import Callback

class Killer(Callback):
    def __init__(self, at: str = "step"):
        self.at = at

    def _kill(self, at):
        if self.at == at and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_batch(self, run, event):
        if event.epoch == 3:
            self._kill("step")

    def on_eval(self, run, event):
        if event.epoch == 2:
            self._kill("eval")

    def on_epoch_end(self, run, event):
        if event.epoch == 2:
            self._kill("end")
"""
FEW = ("--limit-train", "256", "--epochs", "4")
CASES = {
    "teacher, shifted": ("teacher", "step", "--plugin confusion,every=1 --plugin calibration"),
    "student, Adadelta": ("student", "step", "--optimizer adadelta --schedule cosine"),
    "student, SGD, shifted": ("student", "step", "--optimizer sgd --augment shift=1"),
    "student, before the checkpoint": ("student", "eval", "--early-stopping 3"),
    "student, around the checkpoint": ("student", "end", "--schedule constant"),
    "student_kd": ("student_kd", "step", ""),
    "student_kd, shifted": ("student_kd", "step", "--augment shift=1"),
    "student_kd, mixed": ("student_kd", "step", "--augment mixup=0.4,shift=1"),
    "student with running means": ("student", "step", "--student-arch resnet8 --limit-train 128"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_killed_run_ends_like_one_that_was_not(
    case: str, tmp_path: Path, fitted: Fitted, call: Call
) -> None:
    """Each fit trains in children of this process; tests/faults resumes in new processes."""
    mode, at, more = CASES[case]
    (tmp_path / "killer.py").write_text(KILLER)
    teacher = ("--teacher-checkpoint", fitted.model("teacher")) if mode == "student_kd" else ()
    plugin = ("--plugin", f"killer.py:Killer,at={at}")
    flags = ("--mode", mode, *fitted.flags, *FEW, *more.split(), *teacher, *plugin)
    killed = call.any_code("fit", *flags)
    assert killed.returncode == 1
    assert "SIGKILL" in killed.stderr
    run = tmp_path / f"logs/{mode}/version_0"
    status = read_result(run)["status"]
    # Two processes share a teacher; the one that is not killed may write its status.
    assert status == "running" or (mode == "teacher" and status in ("interrupted", "failed"))

    call("fit", "--resume", run.relative_to(tmp_path))
    call("fit", *flags)
    assert_same_run(run, tmp_path / f"logs/{mode}/version_1")
    assert set(count_points(run).values()) == {1}
    assert not [name for name in files_in(tmp_path) if name.endswith(".tmp")]


# Waits in the first student's second epoch, until the test interrupts it.
WAITER = """
import time
from pathlib import Path

from kdtrain import Callback

class Waiter(Callback):
    def on_batch(self, run, event):
        if run.directory.name == "student_kd" and event.epoch == 2 and not Path("reached").exists():
            Path("reached").touch()
            time.sleep(60)
"""


def test_a_comparison_trains_what_is_not_trained_yet(
    tmp_path: Path, fitted: Fitted, call: Call, spawn: Call
) -> None:
    (tmp_path / "waiter.py").write_text(WAITER)
    flags = ("--mode", "compare", *fitted.flags, *FEW, "--seeds", "2", "--plugin", "waiter.py:Waiter")
    ended = signal_when_ready(tmp_path, signal.SIGTERM, lambda pid: (tmp_path / "reached").exists(), *flags)
    compared = tmp_path / "logs/compare/version_0"
    assert (ended.returncode, ended.stdout) == (143, "")
    command = ended.stderr.splitlines()[-1].partition(": kdtrain ")[2].split()
    assert command == ["fit", "--resume", str(compared)]
    assert (compared / "seed_0/student_kd/checkpoints/last.safetensors").exists()

    spawn(*command, cwd=tmp_path)
    call("fit", *flags)
    whole = compared.with_name("version_1")
    for seed in (0, 1):
        for mode in MODES[seed:]:  # the first seed's teacher teaches all
            assert_same_run(compared / f"seed_{seed}" / mode, whole / f"seed_{seed}" / mode)
    results = [json.loads((run / "compare.json").read_text())["models"] for run in (compared, whole)]
    for row, expected in zip(*results, strict=True):
        assert {**row, "seconds": 0} == {**expected, "seconds": 0}


def test_without_a_directory_latest_run_of_mode_goes_on(fitted: Fitted, tmp_path: Path, call: Call) -> None:
    for name in ("version_0", "version_9", "version_10"):
        shutil.copytree(fitted.run("student"), tmp_path / "logs/student" / name)
    before = files_in(tmp_path / "logs/student/version_9")
    finished = call("fit", "--mode", "student", "--resume")
    assert "logs/student/version_10/checkpoints/best.safetensors" in finished.stdout
    assert files_in(tmp_path / "logs/student/version_9") == before


def test_a_finished_run_is_only_tested_again(fitted: Fitted, tmp_path: Path, call: Call) -> None:
    run = Path("logs/student/version_0")
    shutil.copytree(fitted.run("student"), tmp_path / run)
    before = metrics(tmp_path / run)
    finished = call("fit", "--resume", run)
    assert metrics(tmp_path / run) == before
    assert "test accuracy" in finished.stdout


def test_more_epochs_where_the_schedule_is_constant(tmp_path: Path, tiles: Path, call: Call) -> None:
    flags = ("--mode=student", "--recipe=none", "--data-dir", tiles, "--val-size=300", "--schedule=constant")
    call("fit", *flags, "--epochs", "2")
    run = Path("logs/student/version_0")
    call("fit", "--resume", run, "--epochs", "4")
    call("fit", *flags, "--epochs", "4")
    assert_same_run(tmp_path / run, tmp_path / "logs/student/version_1")
    assert_explained(call.any_code("fit", "--resume", run, "--epochs", "3"), 2, "--epochs 3", "4")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--batch-size 32", ("--batch-size 32", "64")),
        ("--student-arch hinton_800", ("--student-arch hinton_800", "student_mlp")),
        ("--seed 1", ("--seed 1", "0")),
        ("--epochs 9", ("--epochs 9", "3", "one_cycle")),
        ("--config run.toml", ("--config",)),
    ],
)
def test_what_must_not_change_is_refused_with_the_difference(
    fitted: Fitted, tmp_path: Path, call: Call, flags: str, words: tuple[str, ...]
) -> None:
    shutil.copytree(fitted.run("student"), tmp_path / "run")
    before = files_in(tmp_path)
    assert_explained(call.any_code("fit", "--resume", "run", *flags.split()), 2, *words)
    assert files_in(tmp_path) == before


def test_other_training_images_are_refused(fitted: Fitted, tmp_path: Path, call: Call) -> None:
    run, data = tmp_path / "run", tmp_path / "images"
    shutil.copytree(fitted.run("student"), run)
    shutil.copytree(fitted.flags[1], data)
    config = run / "config.toml"
    config.write_text(config.read_text().replace(str(fitted.flags[1]), str(data)))
    images = data / "train-images-idx3-ubyte.gz"
    content = bytearray(gzip.decompress(images.read_bytes()))
    content[16:5000] = np.random.default_rng(0).bytes(5000 - 16)
    images.write_bytes(gzip.compress(bytes(content)))
    assert_explained(call.any_code("fit", "--resume", run), 1, "training images", str(run))


@pytest.mark.parametrize("content", [None, b"", b"not a checkpoint", b"\xff" * 200])
def test_damaged_state_is_refused(fitted: Fitted, tmp_path: Path, call: Call, content: bytes | None) -> None:
    shutil.copytree(fitted.run("student"), tmp_path / "run")
    last = tmp_path / "run/checkpoints/last.safetensors"
    if content is None:  # a model, but no state
        content = (tmp_path / "run/checkpoints/best.safetensors").read_bytes()
    last.write_bytes(content)
    assert_explained(call.any_code("fit", "--resume", "run"), 1, "last.safetensors")
