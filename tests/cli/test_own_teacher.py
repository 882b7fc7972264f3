"""``student_kd`` without a teacher trains one first, as a part of the run; both resume together."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import tomli

from tests.cli.conftest import Call, Fitted
from tests.runs import assert_same_files
from tests.tools import read_result

RUN = Path("logs/student_kd/version_0")
FLAGS = ("--val-size=300", "--limit-train=256", "--batch-size=64", "--epochs=2", "--seed=1", "--recipe=none")

# Ends the process in the second epoch of one of the run's networks, or when a file is about to get its name.
ENDER = """
import os, signal
from pathlib import Path

from kdtrain import Callback

class Ender(Callback):
    def _end(self):
        if Path("at").exists():
            how = Path("how").read_text()
            Path("at").unlink()
            if how == "Ctrl-C":
                raise KeyboardInterrupt
            os.kill(os.getpid(), signal.SIGKILL)

    def on_fit_start(self, run):
        self.at = Path("at").read_text() if Path("at").exists() else ""
        rename = os.replace

        def replace(source, target):
            if str(target) == self.at:
                self._end()
            rename(source, target)

        os.replace = replace

    def on_batch(self, run, event):
        if event.epoch == 2 and run.directory.name == self.at:
            self._end()
"""


def end_at(folder: Path, at: str, how: str = "SIGKILL") -> None:
    (folder / "ender.py").write_text(ENDER)
    (folder / "how").write_text(how)
    (folder / "at").write_text(at)


def words(tiles: Path) -> tuple[str | Path, ...]:
    plugin = ("--plugin", "ender.py:Ender")
    return ("fit", "--mode", "student_kd", "--data-dir", tiles, *FLAGS, *plugin)


def without_teacher(config: Path) -> str:
    """Returns a config.toml as it is before it names the teacher."""
    lines = config.read_text().splitlines(keepends=True)
    return "".join(line for line in lines if not line.startswith(("teacher_checkpoint", "teacher_arch")))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiles: Path, spawn: Call) -> Path:
    """The folder of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "ender.py").write_text(ENDER)
    spawn(*words(tiles), cwd=folder)
    return folder


def test_teacher_is_a_part_of_the_run(whole: Path) -> None:
    assert {path.name for path in (whole / "logs").iterdir()} == {"cache", "models", "student_kd"}
    teacher = whole / RUN / "teacher/checkpoints/best.safetensors"
    assert (whole / "logs/models/teacher.safetensors").read_bytes() == teacher.read_bytes()
    config = tomli.loads((whole / RUN / "config.toml").read_text())
    assert config["teacher_checkpoint"] == str(teacher)


@pytest.mark.parametrize(
    "at",
    [
        "teacher",
        str(RUN / "teacher/result.json"),  # the teacher is trained, and not tested yet
        "version_0",
    ],
)
def test_killed_at_any_moment_it_ends_as_if_it_had_not_been(
    at: str, whole: Path, fitted: Fitted, tiles: Path, tmp_path: Path, call: Call
) -> None:
    end_at(tmp_path, at)
    killed = call.any_code(*words(tiles))
    assert killed.returncode == 1
    assert "SIGKILL" in killed.stderr
    kept, strangers = tmp_path / "logs/models/teacher.safetensors", fitted.model("teacher")
    if at == "teacher":  # another one appears, of another seed
        shutil.copy(strangers, kept)
    call("fit", "--mode", "student_kd", "--resume")
    if at == "teacher":
        assert kept.read_bytes() == strangers.read_bytes(), "measured on other images, it is not replaced"
        shutil.copy(whole / "logs/models/teacher.safetensors", kept)
    assert_same_files(tmp_path / "logs", whole / "logs")


def test_killed_between_teacher_and_student_it_does_not_train_another_teacher(
    whole: Path, tmp_path: Path, call: Call
) -> None:
    shutil.copytree(whole / RUN / "teacher", tmp_path / RUN / "teacher")  # no model is kept yet
    (tmp_path / "ender.py").write_text(ENDER)
    config = without_teacher(whole / RUN / "config.toml").replace(str(whole), str(tmp_path))
    (tmp_path / RUN / "config.toml").write_text(config)
    call("fit", "--resume", RUN)
    assert_same_files(tmp_path / "logs", whole / "logs")


def test_interrupted_while_the_teacher_is_trained_it_says_what_goes_on_with_both(
    whole: Path, tiles: Path, tmp_path: Path, call: Call
) -> None:
    end_at(tmp_path, "teacher", "Ctrl-C")
    interrupted = call.any_code(*words(tiles))
    assert interrupted.returncode == 130
    hint = interrupted.stderr.splitlines()[-1].partition("Go on with: kdtrain ")[2]
    assert hint == f"fit --resume {tmp_path / RUN}"
    call(*hint.split())
    assert_same_files(tmp_path / "logs", whole / "logs")


def test_a_teacher_that_was_there_is_kept_from_the_first_moment_on(
    fitted: Fitted, tiles: Path, tmp_path: Path, call: Call
) -> None:
    models = tmp_path / "logs/models"
    models.mkdir(parents=True)
    shutil.copy(fitted.model("teacher"), models / "teacher.safetensors")
    end_at(tmp_path, "version_0")
    assert call.any_code(*words(tiles)).returncode == 1
    config = tomli.loads((tmp_path / RUN / "config.toml").read_text())
    assert config["teacher_checkpoint"] == str(models / "teacher.safetensors")
    (models / "teacher.safetensors").unlink()
    resumed = call.any_code("fit", "--resume", RUN)
    assert resumed.returncode == 1, "it does not train another one instead"
    assert "logs/models/teacher.safetensors" in resumed.stderr.splitlines()[-1]


def test_teacher_that_has_changed_meanwhile_is_refused(fitted: Fitted, tmp_path: Path, call: Call) -> None:
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(fitted.model("teacher").read_bytes())
    words = ("--mode", "student_kd", *fitted.flags, "--teacher-checkpoint", teacher)
    call("fit", *words)
    more = ("--seed", "5", "--epochs", "1", "--logdir", "other")
    call("fit", "--mode", "teacher", *fitted.flags, *more)
    teacher.write_bytes((tmp_path / "other/models/teacher.safetensors").read_bytes())
    finished = call.any_code("fit", "--resume", "logs/student_kd/version_0")
    assert finished.returncode == 1
    assert "teacher" in finished.stderr.splitlines()[-1]
    assert read_result(tmp_path / "logs/student_kd/version_0")["status"] == "completed"


NET = """
from kdtrain import flow

class Net(flow.nn.Module):
    def __init__(self, size, classes):
        super().__init__()
        self.fc = flow.nn.Linear(size, classes)

    def forward(self, x):
        return self.fc(x.flatten(1)) * FACTOR

def make(image_shape, classes):
    channels, height, width = image_shape
    return Net(channels * height * width, classes)
"""


def test_a_changed_forward_of_the_teacher_teaches_its_new_outputs_and_a_resumed_run_refuses_it(
    tmp_path: Path, tiles: Path, call: Call
) -> None:
    def fit(logs: str, *flags: str) -> str:
        words = ("fit", "--data-dir", tiles, *FLAGS, "--logdir", logs, *flags)
        finished = call(*words)
        return finished.stderr

    own = ("--teacher-arch", "net.py:make")
    student = ("--mode", "student_kd", "--teacher-checkpoint", "teacher.safetensors", "--allow-poor-teacher")
    net = tmp_path / "net.py"
    net.write_text(NET.replace("FACTOR", "1.0"))
    fit("first", "--mode", "teacher", *own)
    shutil.copy(tmp_path / "first/models/teacher.safetensors", tmp_path)
    fit("kept", *student, *own)
    net.write_text(NET.replace("FACTOR", "-1.0"))
    assert "computed again" in fit("kept", *student, *own)
    fit("fresh", *student, *own)
    weights = "student_kd/version_{}/checkpoints/best.safetensors"
    kept, fresh = (tmp_path / "kept" / weights.format(1)), (tmp_path / "fresh" / weights.format(0))
    assert kept.read_bytes() == fresh.read_bytes()
    refused = call.any_code("fit", "--resume", "kept/student_kd/version_0")
    assert refused.returncode == 1
    assert "its outputs are different" in refused.stderr
