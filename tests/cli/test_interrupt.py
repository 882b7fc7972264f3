"""Early ends of a fit: SIGINT, SIGTERM and hangs end it within 5 s; a closed pipe stops its output only."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.store.checkpoint import load_model, load_tensors
from tests import warm
from tests.cli.conftest import (
    EPOCH,
    Call,
    Finished,
    Fitted,
    assert_explained,
    signal_when_ready,
    untrained_teacher,
)
from tests.runs import metrics
from tests.tools import ROOT, files_in, read_result, start_kdtrain, wait_until, write_digits

SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])

# Marks the beginning of the third epoch with a file, and delays that epoch.
SIGNPOST = """
import time
from pathlib import Path

from kdtrain import Callback

class Signpost(Callback):
    def on_batch(self, run, event):
        if event.epoch == 3:
            Path("third epoch").touch()
            time.sleep(0.2)
"""


def interrupt(
    folder: Path, number: signal.Signals, ready: Callable[[int], object], *words: str | Path
) -> Finished:
    """Sends a signal to ``kdtrain fit`` with the signpost, once it is ``ready``."""
    (folder / "signpost.py").write_text(SIGNPOST)
    return signal_when_ready(folder, number, ready, "--plugin", "signpost.py:Signpost", *words)


@SIGNALS
def test_in_the_middle_of_an_epoch(fitted: Fitted, tmp_path: Path, number: signal.Signals, code: int) -> None:
    words = ("--mode", "student", *fitted.flags, "--epochs", "9")
    finished = interrupt(tmp_path, number, lambda pid: (tmp_path / "third epoch").exists(), *words)
    assert (finished.returncode, finished.stdout) == (code, "")
    *epochs, last = finished.stderr.splitlines()
    assert last.endswith(f"kdtrain fit --resume {tmp_path}/logs/student/version_0")
    assert len(epochs) == 2
    assert all(EPOCH.fullmatch(line) for line in epochs)

    run = tmp_path / "logs/student/version_0"
    result, rows = read_result(run), metrics(run)
    assert (result["status"], result["epochs"]) == ("interrupted", 3)
    assert [row["epoch"] for row in rows] == [1, 2]
    load_model(run / "checkpoints/best.safetensors").build("cpu")
    _, header = load_tensors(run / "checkpoints/last.safetensors")
    assert header["end"]["epoch"] == 2
    assert header["end"]["step"] == rows[-1]["step"] < result["steps"]
    assert not (tmp_path / "logs/models/student.safetensors").exists()
    assert not [name for name in files_in(tmp_path) if name.endswith(".tmp")]


STEPS = """
from pathlib import Path

from kdtrain import Callback

class Steps(Callback):
    def on_batch(self, run, event):
        Path("first step").touch()
"""


def test_within_a_second_in_the_middle_of_a_step_of_a_large_network(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "steps.py").write_text(STEPS)
    network = ("--student-arch=resnet20", "--batch-size=512", "--val-size=100")  # a step takes seconds
    words = ("--mode=student", "--recipe=none", "--data-dir", digits, *network)
    with start_kdtrain("fit", *words, "--plugin", "steps.py:Steps", cwd=tmp_path) as process:
        try:
            wait_until(lambda: (tmp_path / "first step").exists() or process.poll() is not None)
            time.sleep(0.3)
            process.send_signal(signal.SIGINT)
            start = time.monotonic()
            _, err = process.communicate(timeout=5)
            seconds = time.monotonic() - start
        finally:
            process.kill()
    assert process.returncode == 130
    assert "kdtrain fit --resume" in err
    assert seconds < 1


@pytest.fixture(scope="module")
def many_digits(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Path:
    """Data that the convolutional teacher needs many seconds for."""
    return write_digits(tmp_path_factory.mktemp("many") / "digits", mnist, train=12_000)


@SIGNALS
def test_while_the_teacher_labels_the_training_images(
    many_digits: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    teacher = untrained_teacher(tmp_path / "teacher.safetensors", load_dataset(data_dir=many_digits))
    words = ("--mode=student_kd", "--recipe=none", "--data-dir", many_digits, "--teacher-checkpoint", teacher)
    children: set[int] = set()

    def labelling(pid: int) -> object:
        children.update(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
        return children and (tmp_path / run / "config.toml").exists()

    run = Path("logs/student_kd/version_0")
    finished = interrupt(tmp_path, number, labelling, *words)
    assert (finished.returncode, finished.stdout) == (code, "")
    first, *_, last = finished.stderr.splitlines()
    assert str(teacher) in first
    assert last.endswith(f"kdtrain fit --resume {tmp_path / run}")
    assert files_in(tmp_path).keys() == {"signpost.py", "teacher.safetensors", str(run / "config.toml")}
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]


FAILS = """
from kdtrain import Callback

class Fails(Callback):
    def on_epoch_end(self, run, event):
        raise ValueError("at last")
"""


def read_some(lines: int, *words: str | Path, cwd: Path) -> tuple[int, list[str]]:
    """Runs kdtrain with one pipe for stdout and stderr; so many lines of it are read before it is closed."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "kdtrain", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with warm.Popen(command, cwd=cwd, env=environment, stdout=write, stderr=write) as process:
        os.close(write)
        with os.fdopen(read) as output:
            seen = [output.readline() for _ in range(lines)]
        try:
            return process.wait(timeout=120), seen
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("mode", "lines", "flags"),
    [("student", 0, ()), ("student_kd", 1, ()), ("student", 1, ("--nproc-per-node=2", "--limit-train=128"))],
)
def test_the_fit_goes_on_and_its_files_are_complete(
    mode: str, lines: int, flags: tuple[str, ...], fitted: Fitted, tmp_path: Path
) -> None:
    teacher = ("--teacher-checkpoint", fitted.model("teacher")) if mode == "student_kd" else ()
    code, seen = read_some(lines, "fit", "--mode", mode, *fitted.flags, *teacher, *flags, cwd=tmp_path)
    assert code == 0
    assert all(seen)
    run = tmp_path / "logs" / mode / "version_0"
    assert read_result(run)["status"] == "completed"
    assert len(metrics(run)) == 3
    if not flags:
        assert metrics(run) == metrics(fitted.run(mode))
    assert (tmp_path / f"logs/models/{mode}.safetensors").exists()


def test_a_fit_that_fails_still_fails(fitted: Fitted, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FAILS)
    words = ("fit", "--mode", "student", *fitted.flags, "--plugin", "mine.py:Fails")
    code, _ = read_some(0, *words, cwd=tmp_path)
    assert code == 1
    assert "mine.py:Fails, line 6" in read_result(tmp_path / "logs/student/version_0")["reason"]


STUCK = """
import ctypes
from pathlib import Path

from kdtrain import Callback

def stand_still():
    Path("stuck").touch()
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)

class Stuck(Callback):
    def on_batch(self, run, event):
        {in_hook}

{in_module}
"""


def write_plugin(folder: Path, where: str) -> None:
    calls = {"in_hook": "pass", "in_module": ""} | {where: "stand_still()"}
    (folder / "stuck.py").write_text(STUCK.format(**calls))


@pytest.mark.parametrize("where", ["in_hook", "in_module"])
def test_one_ctrl_c_ends_a_fit_that_hangs_in_c_code(fitted: Fitted, tmp_path: Path, where: str) -> None:
    write_plugin(tmp_path, where)
    words = ("--mode", "student", "--plugin", "stuck.py:Stuck", *fitted.flags)
    finished = signal_when_ready(tmp_path, signal.SIGINT, lambda pid: (tmp_path / "stuck").exists(), *words)
    assert (finished.returncode, finished.stdout) == (130, "")
    assert "stuck.py, line 11" in finished.stderr
    assert ("logs/student/version_0" in finished.stderr) == (where == "in_hook")


def test_a_fit_without_progress_is_ended_and_goes_on_with_another_limit(
    fitted: Fitted, tmp_path: Path, spawn: Call
) -> None:
    write_plugin(tmp_path, "in_hook")
    words = ("--mode", "student", "--plugin", "stuck.py:Stuck", "--stall-timeout", "1", *fitted.flags)
    ended = spawn.any_code("fit", *words, cwd=tmp_path, timeout=60)
    assert_explained(ended, 1, "stuck.py, line 11, in stand_still", "--stall-timeout")

    (tmp_path / "stuck.py").write_text("from kdtrain import Callback\n\nclass Stuck(Callback):\n    pass\n")
    spawn("fit", "--mode", "student", "--resume", "--stall-timeout", "60", cwd=tmp_path)
