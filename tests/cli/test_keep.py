"""Which models stay in ``--model-save-dir``: the best of comparable runs, per mode, data set and network."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kdtrain.data.dataset import Dataset
from kdtrain.store.checkpoint import load_model, save_model
from tests.cli.conftest import EPOCH, CallKdtrain, Finished, Fitted, assert_explained, untrained_teacher
from tests.tools import ROOT, files_in

MODELS = Path("logs/models")
STUDENT = MODELS / "student.safetensors"
QUICK = ("--limit-train", "100", "--epochs", "1")


def run_of(folder: Path, mode: str = "student", version: int = 0) -> Path:
    return folder / "logs" / mode / f"version_{version}"


def best_of(run: Path) -> bytes:
    return (run / "checkpoints/best.safetensors").read_bytes()


def accuracy_of(run: Path) -> str:
    """As it is printed."""
    return f"{json.loads((run / 'result.json').read_text())['best']['eval/accuracy']:.2%}"


def notes(finished: Finished) -> list[str]:
    """What was said beside the epochs."""
    assert finished.returncode == 0, finished.stderr
    return [line for line in finished.stderr.splitlines() if not EPOCH.fullmatch(line)]


@pytest.fixture
def trained(fitted: Fitted, call_kdtrain: CallKdtrain, tmp_path: Path) -> Path:
    """A folder in which a student of three epochs was trained and kept."""
    assert notes(call_kdtrain("fit", "--mode", "student", *fitted.flags, cwd=tmp_path)) == []
    return tmp_path


def test_a_quick_try_does_not_replace_a_better_model(
    trained: Path, fitted: Fitted, call_kdtrain: CallKdtrain
) -> None:
    before = files_in(trained / MODELS)
    finished = call_kdtrain("fit", "--mode", "student", *fitted.flags, *QUICK, cwd=trained)
    (said,) = notes(finished)
    for word in (str(STUDENT), accuracy_of(run_of(trained)), accuracy_of(run_of(trained, version=1))):
        assert word in said
    assert files_in(trained / MODELS) == before


def test_a_better_model_replaces_a_quick_try(
    fitted: Fitted, call_kdtrain: CallKdtrain, tmp_path: Path
) -> None:
    words = ("fit", "--mode", "student", *fitted.flags)
    assert notes(call_kdtrain(*words, *QUICK, cwd=tmp_path)) == []
    (said,) = notes(call_kdtrain(*words, cwd=tmp_path))
    for word in (str(STUDENT), accuracy_of(run_of(tmp_path)), accuracy_of(run_of(tmp_path, version=1))):
        assert word in said
    assert (tmp_path / STUDENT).read_bytes() == best_of(run_of(tmp_path, version=1))


@pytest.mark.parametrize("other", [("--seed", "1"), ("--val-size", "0")])
def test_other_held_out_images_are_not_compared_and_replace_nothing_by_themselves(
    trained: Path, fitted: Fitted, call_kdtrain: CallKdtrain, other: tuple[str, str]
) -> None:
    """A finished run is kept with ``--resume RUN --replace``, which the note says."""
    words = ("fit", "--mode", "student", *fitted.flags, "--epochs", "1", *other)
    before = files_in(trained / MODELS)
    *_, said = notes(call_kdtrain(*words, cwd=trained))
    for word in (str(STUDENT), accuracy_of(run_of(trained)), accuracy_of(run_of(trained, version=1))):
        assert word in said
    assert files_in(trained / MODELS) == before
    again = said[said.index("--resume") :].rstrip(".").split()
    assert again == ["--resume", str(run_of(Path(), version=1)), "--replace"]
    *_, said = notes(call_kdtrain("fit", *again, cwd=trained))
    assert accuracy_of(run_of(trained)) in said
    assert (trained / STUDENT).read_bytes() == best_of(run_of(trained, version=1))


def test_replace_puts_a_worse_model_there(trained: Path, fitted: Fitted, call_kdtrain: CallKdtrain) -> None:
    finished = call_kdtrain("fit", "--mode", "student", *fitted.flags, *QUICK, "--replace", cwd=trained)
    (said,) = notes(finished)
    for word in (str(STUDENT), accuracy_of(run_of(trained)), accuracy_of(run_of(trained, version=1))):
        assert word in said
    assert (trained / STUDENT).read_bytes() == best_of(run_of(trained, version=1))


def test_without_keeping_the_run_has_its_own_teacher_and_leaves_none(
    fitted: Fitted, call_kdtrain: CallKdtrain, tmp_path: Path
) -> None:
    words = ("fit", "--mode", "student_kd", *fitted.flags, *QUICK)
    notes(call_kdtrain(*words, "--no-keep", cwd=tmp_path))
    assert files_in(tmp_path / "logs").keys() >= {"student_kd/version_0/checkpoints/best.safetensors"}
    assert not (tmp_path / MODELS).exists()
    # What was not kept at first can be kept later.
    notes(call_kdtrain("fit", "--resume", "logs/student_kd/version_0", "--replace", cwd=tmp_path))
    assert {path.name for path in (tmp_path / MODELS).iterdir()} == {"student_kd.safetensors"}


def test_replace_and_no_keep_exclude_each_other(call_kdtrain: CallKdtrain, tmp_path: Path) -> None:
    words = ("fit", "--mode", "student", "--replace", "--no-keep")
    assert_explained(call_kdtrain(*words, cwd=tmp_path), 2, "--no-keep", "--replace")


def test_models_of_other_data_and_other_networks_have_files_of_their_own(
    trained: Path, fitted: Fitted, digits: Path, tiles: Path, call_kdtrain: CallKdtrain
) -> None:
    before = (trained / STUDENT).read_bytes()
    words = ("fit", "--mode", "student", "--val-size", "300", "--epochs", "1")
    other_data = MODELS / "student-digits-student_mlp.safetensors"
    other_network = MODELS / "student-tiles-hinton_800.safetensors"
    (said,) = notes(call_kdtrain(*words, "--data-dir", digits, cwd=trained))
    assert str(other_data) in said
    (said,) = notes(call_kdtrain(*words, "--data-dir", tiles, "--student-arch", "hinton_800", cwd=trained))
    assert str(other_network) in said
    assert (trained / STUDENT).read_bytes() == before
    assert load_model(trained / other_data).card.dataset == "digits"
    assert load_model(trained / other_network).card.arch == "hinton_800"

    # Each is compared with its own kind.
    (said,) = notes(call_kdtrain(*words, "--data-dir", digits, *QUICK, cwd=trained))
    assert str(other_data) in said
    assert load_model(trained / other_data).card.images == 1200
    assert {path.name for path in (trained / MODELS).iterdir()} == {
        path.name for path in (STUDENT, other_data, other_network)
    }

    # Commands that look for a model say which of them they take.
    asked = ("infer", "--model-type", "student", "--picture-index", "0", "--json")
    for flags, path in (
        (("--data-dir", tiles), STUDENT),
        (("--data-dir", digits), other_data),
        (("--data-dir", tiles, "--arch", "hinton_800"), other_network),
    ):
        finished = call_kdtrain(*asked, *flags, cwd=trained)
        assert json.loads(finished.stdout)[0]["model"] == str(path)
        (said,) = notes(finished)
        assert str(path) in said
    for data, own in ((tiles, {STUDENT, other_network}), (digits, {other_data})):
        benched = call_kdtrain("bench", "--rounds", "1", "--data-dir", data, "--json", cwd=trained)
        (said,) = notes(benched)
        assert {row["model"] for row in json.loads(benched.stdout)} == {str(path) for path in own}
        assert all(path.name in said for path in {STUDENT, other_data, other_network} - own)


def test_a_run_that_is_killed_before_its_model_is_kept_ends_with_the_same_files(
    fitted: Fitted, call_kdtrain: CallKdtrain, tmp_path: Path
) -> None:
    """It waits for the folder of models, which another process holds, and is killed there."""
    (tmp_path / MODELS).mkdir(parents=True)
    words = [sys.executable, "-m", "kdtrain", "fit", "--mode", "student", *map(str, fitted.flags)]
    holder = os.open(tmp_path / MODELS, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL) as process:
        result = run_of(tmp_path) / "result.json"
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (
            result.exists() and "test" in json.loads(result.read_text())
        ):
            time.sleep(0.05)
        time.sleep(0.3)
        process.kill()
    os.close(holder)
    assert files_in(tmp_path / MODELS) == {}
    for _ in range(2):  # once to end what was begun; then it is there already
        assert notes(call_kdtrain("fit", "--resume", run_of(Path()), cwd=tmp_path)) == []
        assert (tmp_path / STUDENT).read_bytes() == best_of(run_of(tmp_path))


def old(path: Path) -> None:
    """Makes a model's file one of kdtrain 0.1 before it noted how the weights were trained and measured."""
    model = load_model(path)
    save_model(path, model.weights, dataclasses.replace(model.card, epochs=0, images=0, held_out=""))


def test_models_of_earlier_versions_are_not_replaced_unasked(
    trained: Path, fitted: Fitted, call_kdtrain: CallKdtrain
) -> None:
    old(trained / STUDENT)
    before = files_in(trained / MODELS)
    words = ("fit", "--mode", "student", *fitted.flags, *QUICK)
    (said,) = notes(call_kdtrain(*words, cwd=trained))
    for word in (str(STUDENT), accuracy_of(run_of(trained)), accuracy_of(run_of(trained, version=1))):
        assert word in said
    assert files_in(trained / MODELS) == before
    notes(call_kdtrain(*words, "--replace", cwd=trained))
    assert (trained / STUDENT).read_bytes() == best_of(run_of(trained, version=2))


def test_a_teacher_of_an_earlier_version_is_used_and_said_to_be_unknown(
    fitted: Fitted, call_kdtrain: CallKdtrain, tmp_path: Path
) -> None:
    (tmp_path / MODELS).mkdir(parents=True)
    teacher = tmp_path / MODELS / "teacher.safetensors"
    teacher.write_bytes(fitted.model("teacher").read_bytes())
    old(teacher)
    said, *_ = notes(call_kdtrain("fit", "--mode", "student_kd", *fitted.flags, *QUICK, cwd=tmp_path))
    for word in ("logs/models/teacher.safetensors", accuracy_of(fitted.run("teacher")), "not recorded"):
        assert word in said


def test_a_teacher_of_a_quick_try_is_said_to_be_one(
    fitted: Fitted, tiles: Path, call_kdtrain: CallKdtrain, tmp_path: Path
) -> None:
    data = ("--data-dir", tiles, "--val-size", "300", "--batch-size", "64")
    assert call_kdtrain("fit", "--mode", "teacher", *data, *QUICK, cwd=tmp_path).returncode == 0
    words = ("fit", "--mode", "student_kd", *data)
    for flags in (("--teacher-epochs", "2", "--epochs", "1"), ("--limit-train", "200", "--epochs", "1")):
        said, *_ = notes(call_kdtrain(*words, *flags, cwd=tmp_path))
        assert "logs/models/teacher.safetensors" in said
        for word in ("1 epoch,", "100 images", accuracy_of(run_of(tmp_path, "teacher"))):
            assert word in said
    said, *_ = notes(call_kdtrain(*words, *QUICK, cwd=tmp_path))
    assert said == "The teacher is logs/models/teacher.safetensors.", "it is what this run would train"


def test_a_given_teacher_of_other_data_is_said_to_be_one(
    fitted: Fitted, mnist: Dataset, digits: Path, call_kdtrain: CallKdtrain, tmp_path: Path
) -> None:
    teacher = untrained_teacher(tmp_path / "t.safetensors", mnist, "hinton_800")
    words = ("fit", "--mode", "student_kd", "--data-dir", digits, "--teacher-checkpoint", teacher)
    said, *_ = notes(call_kdtrain(*words, *QUICK, cwd=tmp_path))
    for word in (str(teacher), "mnist", "digits"):
        assert word in said


def test_a_teacher_of_other_data_is_left_alone_and_one_is_trained(
    tiles: Path, mnist: Dataset, call_kdtrain: CallKdtrain, tmp_path: Path
) -> None:
    (tmp_path / MODELS).mkdir(parents=True)
    other = untrained_teacher(tmp_path / MODELS / "teacher.safetensors", mnist)
    before = other.read_bytes()
    words = ("fit", "--mode", "student_kd", "--data-dir", tiles, "--val-size", "300", *QUICK)
    first, kept = notes(call_kdtrain(*words, cwd=tmp_path))
    own = "logs/models/teacher-tiles-teacher_cnn.safetensors"
    assert "no teacher for tiles" in first
    assert own in kept
    assert other.read_bytes() == before
    said, *_ = notes(call_kdtrain(*words, cwd=tmp_path))
    assert said == f"The teacher is {own}."
