"""SIGINT and SIGTERM: the process ends within 5 s with its exit code, and leaves no unfinished file."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.store.checkpoint import load_model, load_tensors
from tests.cli.conftest import EPOCH, Finished, Fitted, signal_when_ready, untrained_teacher
from tests.runs import metrics
from tests.tools import files_in, read_result, write_digits

SIGNALS = pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])

# Marks the beginning of the third epoch with a file, and delays that epoch.
PLUGIN = """
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
    (folder / "signpost.py").write_text(PLUGIN)
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


@pytest.fixture(scope="module")
def many_digits(tmp_path_factory: pytest.TempPathFactory, mnist: Dataset) -> Path:
    """Data that the convolutional teacher needs many seconds for."""
    return write_digits(tmp_path_factory.mktemp("many") / "digits", mnist, train=12_000)


@SIGNALS
def test_while_the_teacher_labels_the_training_images(
    many_digits: Path, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    teacher = untrained_teacher(tmp_path / "teacher.safetensors", load_dataset(data_dir=many_digits))
    words = ("--mode", "student_kd", "--data-dir", many_digits, "--teacher-checkpoint", teacher)
    children: set[int] = set()

    def labelling(pid: int) -> bool:
        children.update(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
        return bool(children)

    finished = interrupt(tmp_path, number, labelling, *words)
    assert (finished.returncode, finished.stdout) == (code, "")
    run = Path("logs/student_kd/version_0")
    first, last = finished.stderr.splitlines()
    assert str(teacher) in first
    assert last.endswith(f"kdtrain fit --resume {tmp_path / run}")
    assert files_in(tmp_path).keys() == {"signpost.py", "teacher.safetensors", str(run / "config.toml")}
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
