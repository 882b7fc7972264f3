"""Models in ``--model-save-dir``: the best of comparable runs, by mode, data set and network."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path

import pytest

from kdtrain.data.dataset import Dataset
from kdtrain.store.checkpoint import load_model
from tests.cli.conftest import EPOCH, Call, Finished, Fitted, untrained_teacher
from tests.tools import files_in, read_result, read_tested, start_kdtrain, wait_until

MODELS = Path("logs/models")
STUDENT = MODELS / "student.safetensors"
QUICK = ("--recipe=none", "--limit-train", "100", "--epochs", "1")


def run_of(folder: Path, mode: str = "student", version: int = 0) -> Path:
    return folder / "logs" / mode / f"version_{version}"


def best_of(run: Path) -> bytes:
    return (run / "checkpoints/best.safetensors").read_bytes()


def accuracy_of(run: Path) -> str:
    """Returns the best held-out accuracy of a run, as it is printed."""
    return f"{read_tested(run)['held_out_accuracy_fraction']:.2%}"


def assert_note_compares_runs(note: str, folder: Path, version: int = 1) -> None:
    """Asserts that a note names the kept student and the accuracies of its run and of a later one."""
    assert str(STUDENT) in note
    assert accuracy_of(run_of(folder)) in note
    assert accuracy_of(run_of(folder, version=version)) in note


def notes(finished: Finished) -> list[str]:
    """Returns the lines on stderr that are not those of epochs."""
    assert finished.returncode == 0, finished.stderr
    return [line for line in finished.stderr.splitlines() if not EPOCH.fullmatch(line)]


@pytest.fixture
def trained(fitted: Fitted, tmp_path: Path) -> Path:
    """A folder in which a student of three epochs was trained and kept."""
    shutil.copytree(fitted.run("student"), run_of(tmp_path))
    (tmp_path / MODELS).mkdir()
    shutil.copy(fitted.model("student"), tmp_path / STUDENT)
    return tmp_path


def test_a_worse_model_replaces_a_better_one_only_if_asked(trained: Path, fitted: Fitted, call: Call) -> None:
    before = files_in(trained / MODELS)
    words = ("fit", "--mode", "student", *fitted.flags, *QUICK)
    (note,) = notes(call(*words, cwd=trained))
    assert_note_compares_runs(note, trained)
    assert files_in(trained / MODELS) == before
    (note,) = notes(call(*words, "--replace", cwd=trained))
    assert_note_compares_runs(note, trained, version=2)
    assert (trained / STUDENT).read_bytes() == best_of(run_of(trained, version=2))


def test_a_better_model_replaces_a_quick_try(fitted: Fitted, call: Call, tmp_path: Path) -> None:
    words = ("fit", "--mode", "student", *fitted.flags)
    assert notes(call(*words, *QUICK)) == []
    (note,) = notes(call(*words))
    assert_note_compares_runs(note, tmp_path)
    assert (tmp_path / STUDENT).read_bytes() == best_of(run_of(tmp_path, version=1))


@pytest.mark.parametrize("other", [("--seed", "1"), ("--val-size", "0")])
def test_other_held_out_images_are_not_compared_and_replace_nothing_by_themselves(
    trained: Path, fitted: Fitted, call: Call, other: tuple[str, str]
) -> None:
    """A finished run is kept with ``--resume RUN --replace``, which the note says."""
    words = ("fit", "--mode", "student", *fitted.flags, "--epochs", "1", *other)
    before = files_in(trained / MODELS)
    *_, note = notes(call(*words, cwd=trained))
    assert_note_compares_runs(note, trained)
    assert files_in(trained / MODELS) == before
    again = note[note.index("--resume") :].rstrip(".").split()
    assert again == ["--resume", str(run_of(Path(), version=1)), "--replace"]
    *_, note = notes(call("fit", *again, cwd=trained))
    assert accuracy_of(run_of(trained)) in note
    assert (trained / STUDENT).read_bytes() == best_of(run_of(trained, version=1))


def test_without_keeping_the_run_has_its_own_teacher_and_leaves_none(
    fitted: Fitted, call: Call, tmp_path: Path
) -> None:
    words = ("fit", "--mode", "student_kd", *fitted.flags, *QUICK)
    notes(call(*words, "--no-keep"))
    assert files_in(tmp_path / "logs").keys() >= {"student_kd/version_0/checkpoints/best.safetensors"}
    assert not (tmp_path / MODELS).exists()
    # What was not kept at first can be kept later.
    run = tmp_path / "logs/student_kd/version_0"
    figures = (run / "result.json").read_bytes(), (run / "metrics.jsonl").read_bytes()
    again = call("fit", "--resume", "logs/student_kd/version_0", "--replace")
    assert "student_kd is finished, after epoch" in again.stderr
    assert ((run / "result.json").read_bytes(), (run / "metrics.jsonl").read_bytes()) == figures
    assert {path.name for path in (tmp_path / MODELS).iterdir()} == {"student_kd.safetensors"}


def test_models_of_other_data_and_other_networks_have_files_of_their_own(
    trained: Path, fitted: Fitted, digits: Path, tiles: Path, call: Call
) -> None:
    before = (trained / STUDENT).read_bytes()
    words = ("fit", "--mode", "student", "--val-size", "300", "--epochs", "1", "--recipe=none")
    other_data = MODELS / "student-digits-student_mlp.safetensors"
    other_network = MODELS / "student-tiles-hinton_800.safetensors"
    (note,) = notes(call(*words, "--data-dir", digits, cwd=trained))
    assert str(other_data) in note
    (note,) = notes(call(*words, "--data-dir", tiles, "--student-arch", "hinton_800", cwd=trained))
    assert str(other_network) in note
    assert (trained / STUDENT).read_bytes() == before
    assert load_model(trained / other_data).card.dataset == "digits"
    assert load_model(trained / other_network).card.arch == "hinton_800"

    # Each is compared with its own kind.
    (note,) = notes(call(*words, "--data-dir", digits, *QUICK, cwd=trained))
    assert str(other_data) in note
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
        finished = call(*asked, *flags, cwd=trained)
        assert json.loads(finished.stdout)[0]["model"] == str(path)
        (note,) = notes(finished)
        assert str(path) in note
    for data, own in ((tiles, {STUDENT, other_network}), (digits, {other_data})):
        benched = call("bench", "--rounds", "1", "--data-dir", data, "--json", cwd=trained)
        (note,) = notes(benched)
        assert {row["model"] for row in json.loads(benched.stdout)} == {str(path) for path in own}
        assert all(path.name in note for path in {STUDENT, other_data, other_network} - own)


def test_a_run_that_is_killed_before_its_model_is_kept_ends_with_the_same_files(
    fitted: Fitted, call: Call, tmp_path: Path
) -> None:
    """It waits for the folder of models, which another process holds, and is killed there."""
    (tmp_path / MODELS).mkdir(parents=True)
    holder = os.open(tmp_path / MODELS, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    with start_kdtrain("fit", "--mode", "student", *fitted.flags, cwd=tmp_path) as process:
        run = run_of(tmp_path)
        wait_until(lambda: (run / "result.json").exists() and read_result(run).get("models"))
        time.sleep(0.3)
        process.kill()
    os.close(holder)
    assert files_in(tmp_path / MODELS) == {}
    for _ in range(2):  # once to end what was begun; then it is there already
        (note,) = notes(call("fit", "--resume", run_of(Path())))
        assert note.startswith("student is finished")
        assert (tmp_path / STUDENT).read_bytes() == best_of(run_of(tmp_path))


def test_a_teacher_of_a_quick_try_is_said_to_be_one(
    fitted: Fitted, tiles: Path, call: Call, tmp_path: Path
) -> None:
    data = ("--data-dir", tiles, "--val-size", "300", "--batch-size", "64", "--recipe=none")
    call("fit", "--mode", "teacher", *data, *QUICK)
    words = ("fit", "--mode", "student_kd", *data)
    for flags in (("--teacher-epochs", "2", "--epochs", "1"), ("--limit-train", "200", "--epochs", "1")):
        look, note, *_ = notes(call(*words, *flags))
        assert "logs/models/teacher.safetensors recognises" in look
        assert "logs/models/teacher.safetensors" in note
        for word in ("1 epoch,", "100 images", accuracy_of(run_of(tmp_path, "teacher"))):
            assert word in note
    _, note, *_ = notes(call(*words, *QUICK))
    assert "logs/models/teacher.safetensors" in note
    assert "100" not in note, "it is what this run would train"


def test_a_given_teacher_of_other_data_is_said_to_be_one(
    fitted: Fitted, mnist: Dataset, digits: Path, call: Call, tmp_path: Path
) -> None:
    teacher = untrained_teacher(tmp_path / "t.safetensors", mnist, "hinton_800")
    words = ("fit", "--mode", "student_kd", "--data-dir", digits, "--teacher-checkpoint", teacher)
    form, look, note, *_ = notes(call(*words, *QUICK))
    assert "it gets the students' images in this form" in form
    assert f"{teacher} recognises" in look
    for word in (str(teacher), "mnist", "digits"):
        assert word in note


def test_a_teacher_of_other_data_is_left_alone_and_one_is_trained(
    tiles: Path, mnist: Dataset, call: Call, tmp_path: Path
) -> None:
    (tmp_path / MODELS).mkdir(parents=True)
    other = untrained_teacher(tmp_path / MODELS / "teacher.safetensors", mnist)
    before = other.read_bytes()
    words = ("fit", "--mode", "student_kd", "--data-dir", tiles, "--val-size", "300", *QUICK)
    first, kept, lead = notes(call(*words))
    assert lead.startswith("Teacher: ")
    own = "logs/models/teacher-tiles-teacher_cnn.safetensors"
    assert "tiles" in first
    assert own in kept
    assert other.read_bytes() == before
    note, *_ = notes(call(*words))
    assert own in note
