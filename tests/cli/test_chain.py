"""Teacher assistants and generations: each network is the next one's teacher."""

from __future__ import annotations

from pathlib import Path

import pytest

from kdtrain.store.checkpoint import load_model
from tests.cli.conftest import CallKdtrain, Fitted
from tests.conftest import RunKdtrain
from tests.runs import assert_same_run
from tests.tools import read_result

STAGES = ("assistant_1", "generation_1", "generation_2")
CHAIN = ("--assistant-arch", "hinton_800", "--generations", "2", "--limit-train", "256")

KILLER = """
import os, signal
from pathlib import Path

from kdtrain import Callback

class Killer(Callback):
    def on_eval(self, run, event):
        if run.directory.name == "generation_1" and event.epoch == 2 and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def flags(fitted: Fitted) -> tuple[str | Path, ...]:
    teacher = ("--teacher-checkpoint", fitted.model("teacher"))
    return ("fit", "--mode", "student_kd", *fitted.flags, *CHAIN, *teacher, "--plugin", "killer.py:Killer")


@pytest.fixture(scope="module")
def whole(
    tmp_path_factory: pytest.TempPathFactory, flags: tuple[str | Path, ...], run_kdtrain: RunKdtrain
) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    (folder / "killer.py").write_text(KILLER)
    (folder / "killed").touch()
    finished = run_kdtrain(*flags, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    assert "assistant_1 (hinton_800): " in finished.stderr
    assert "generation_2/checkpoints/best.safetensors" in finished.stdout
    return folder


def test_each_is_taught_by_the_one_before(whole: Path, fitted: Fitted) -> None:
    run = whole / "logs/student_kd/version_0"
    assert {path.name for path in run.iterdir()} == {"config.toml", "teacher_lead.json", *STAGES}
    teachers = [fitted.model("teacher"), *(run / name / "checkpoints/best.safetensors" for name in STAGES)]
    for name, teacher in zip(STAGES, teachers, strict=False):
        config = (run / name / "config.toml").read_text()
        assert f'{teacher.relative_to(whole) if whole in teacher.parents else teacher}"' in config
        assert "generations = 1" in config
    models = [load_model(path) for path in teachers[1:]]
    assert [model.card.arch for model in models] == ["hinton_800", "student_mlp", "student_mlp"]
    first, second = (model.weights["fc1.weight"].tobytes() for model in models[1:])
    assert first != second
    kept = whole / "logs/models/student_kd.safetensors"
    assert kept.read_bytes() == teachers[-1].read_bytes()
    config = (run / "config.toml").read_text()
    assert "generations = 2" in config


def test_chain_that_was_killed_goes_on_where_it_was(
    whole: Path, flags: tuple[str | Path, ...], tmp_path: Path, call_kdtrain: CallKdtrain
) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    assert call_kdtrain(*flags, cwd=tmp_path).returncode == 1
    run = Path("logs/student_kd/version_0")
    assert not (tmp_path / run / "generation_2").exists()
    finished = call_kdtrain("fit", "--resume", run, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    for name in STAGES:
        assert_same_run(tmp_path / run / name, whole / run / name)


def test_teacher_that_has_changed_meanwhile_is_refused(
    flags: tuple[str | Path, ...], fitted: Fitted, tmp_path: Path, call_kdtrain: CallKdtrain
) -> None:
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(fitted.model("teacher").read_bytes())
    words = ("--mode", "student_kd", *fitted.flags, "--teacher-checkpoint", teacher)
    assert call_kdtrain("fit", *words, cwd=tmp_path).returncode == 0
    more = ("--seed", "5", "--epochs", "1", "--logdir", "other")
    assert call_kdtrain("fit", "--mode", "teacher", *fitted.flags, *more, cwd=tmp_path).returncode == 0
    teacher.write_bytes((tmp_path / "other/models/teacher.safetensors").read_bytes())
    finished = call_kdtrain("fit", "--resume", "logs/student_kd/version_0", cwd=tmp_path)
    assert finished.returncode == 1
    assert "teacher" in finished.stderr.splitlines()[-1]
    assert read_result(tmp_path / "logs/student_kd/version_0")["status"] == "completed"
