"""``--student-checkpoint``: students begin from the weights of a file, in every mode that trains students."""

from __future__ import annotations

import dataclasses
import html
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tomli

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.store.checkpoint import load_model, save_model
from tests.cli.conftest import Call, Fitted, assert_explained, untrained_teacher
from tests.cli.test_resume import KILLER
from tests.runs import assert_same_run, metrics
from tests.tools import read_result

# Notes the weights that a fit begins from.
NOTER = """
import numpy as np
from kdtrain import Callback

class Noter(Callback):
    def on_fit_start(self, run):
        np.savez(run.directory / "first.npz", **{n: t.numpy() for n, t in run.model.state_dict().items()})
"""
FEW = ("--limit-train", "256", "--epochs", "1")


def first_weights(run: Path) -> dict[str, np.ndarray[tuple[int, ...], np.dtype[np.float32]]]:
    with np.load(run / "first.npz") as file:
        return {name: file[name] for name in file}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "noter.py").write_text(NOTER)
    return tmp_path


def test_every_student_of_a_comparison_begins_from_the_file_and_the_teacher_does_not(
    folder: Path, fitted: Fitted, call: Call
) -> None:
    file = fitted.model("student")
    flags = ("--plugin", "noter.py:Noter", "--with-label-smoothing", "--seeds", "2", "--student-checkpoint")
    finished = call("fit", *fitted.flags, *FEW, *flags, file, cwd=folder)
    expected = load_model(file).weights
    run = folder / "logs/compare/version_0"
    for student in ("seed_0/student", "seed_0/student_kd", "seed_0/student_ls", "seed_1/student"):
        weights = first_weights(run / student)
        assert weights.keys() == expected.keys()
        assert all(np.array_equal(weights[name], expected[name]) for name in expected)
        assert tomli.loads((run / student / "config.toml").read_text())["student_checkpoint"] == str(file)
    assert first_weights(run / "seed_0/teacher").keys() != expected.keys()
    assert "student_checkpoint" not in tomli.loads((run / "seed_0/teacher/config.toml").read_text())
    sentence = f"Every student of every seed begins from the weights in {file}."
    record = json.loads((run / "compare.json").read_text())
    assert record["conditions"]["student_checkpoint"] == str(file)
    assert sentence in record["sentences"]
    assert sentence in finished.stdout
    assert f"begin from the weights in {file}" in finished.stderr
    page = html.unescape(re.sub("<[^>]*>", "", (run / "report.html").read_text()))
    assert sentence.replace(str(file), file.name) in page
    assert f'student_checkpoint = "{file.name}"' in page


def test_a_student_is_tuned_further_and_is_better_after_one_epoch(
    folder: Path, fitted: Fitted, call: Call
) -> None:
    for words in ((), ("--student-checkpoint", fitted.model("student_kd"))):
        call("fit", "--mode", "student", *fitted.flags, *FEW, *words, cwd=folder)
    drawn, begun = (metrics(folder / f"logs/student/version_{number}")[0] for number in (0, 1))
    assert begun["loss/task"] < 0.5 * drawn["loss/task"]
    assert begun["val/accuracy"] > drawn["val/accuracy"]


def test_a_resumed_run_needs_the_file_no_more(tmp_path: Path, fitted: Fitted, call: Call) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    file = tmp_path / "first.safetensors"
    flags = ("--mode", "student_kd", *fitted.flags, "--limit-train=256", "--epochs=4")
    teacher = ("--teacher-checkpoint", fitted.model("teacher"), "--plugin", "killer.py:Killer")
    words = ("fit", *flags, *teacher, "--student-checkpoint", file)
    file.write_bytes(fitted.model("student").read_bytes())
    assert "SIGKILL" in call.any_code(*words).stderr
    file.unlink()
    run = tmp_path / "logs/student_kd/version_0"
    call("fit", "--resume", run)

    assert f"there is no checkpoint {file}" in call.any_code(*words).stderr
    assert not run.with_name("version_1").exists(), "it is checked before any work"
    file.write_bytes(fitted.model("student").read_bytes())
    call(*words)
    assert_same_run(run, run.with_name("version_1"))


def test_a_run_without_any_epoch_names_the_file_it_lacks(tmp_path: Path, fitted: Fitted, call: Call) -> None:
    file = tmp_path / "first.safetensors"
    file.write_bytes(fitted.model("student").read_bytes())
    words = ("--mode", "student", *fitted.flags, *FEW, "--student-checkpoint", file)
    call("fit", *words)
    run = tmp_path / "logs/student/version_0"
    (run / "checkpoints/last.safetensors").unlink()
    file.unlink()
    resumed = call.any_code("fit", "--resume", run)
    assert resumed.returncode == 1
    assert str(file) in resumed.stderr.splitlines()[-1]
    assert read_result(run)["status"] == "completed", "nothing was overwritten"


def test_what_has_no_student_to_begin_is_refused(call: Call) -> None:
    words = ("fit", "--mode", "teacher", "--student-checkpoint", "first.safetensors")
    reason = "is for students, not for --mode teacher"
    assert_explained(call.any_code(*words), 2, "--student-checkpoint first.safetensors", reason)


def test_other_networks_shapes_and_classes_are_refused_before_any_work(
    tmp_path: Path, mnist: Dataset, tiles: Path, fitted: Fitted, call: Call
) -> None:
    def refusal(path: Path, *words: str) -> str:
        flags = ("--student-checkpoint", path, "--recipe=none", *words)
        finished = call.any_code("fit", "--mode", "student", "--data-dir", tiles, *flags)
        assert_explained(finished, 1, str(path))
        assert not (tmp_path / "logs/student").exists()
        return finished.stderr

    tiled = load_dataset(data_dir=tiles)
    other = untrained_teacher(tmp_path / "other.safetensors", tiled, "hinton_800")
    assert "is a hinton_800, but --student-arch is student_mlp" in refusal(other)
    ten = untrained_teacher(tmp_path / "ten.safetensors", mnist, "student_mlp")
    assert "has 10 classes" in refusal(ten)
    small = load_model(fitted.model("student"))
    wrong = dict(small.weights)
    wrong["fc1.bias"] = wrong["fc1.bias"][:-1]
    save_model(tmp_path / "wrong.safetensors", wrong, small.card)
    assert "do not fit the network" in refusal(tmp_path / "wrong.safetensors")


def test_another_normalisation_is_said(tmp_path: Path, fitted: Fitted, call: Call) -> None:
    saved = load_model(fitted.model("student"))
    save_model(
        tmp_path / "other.safetensors",
        saved.weights,
        dataclasses.replace(saved.card, mean=(0.25,), std=(0.125,)),
    )
    words = ("--mode", "student", *fitted.flags, *FEW, "--student-checkpoint")
    finished = call("fit", *words, "other.safetensors")
    assert "images of mean 0.2500 and deviation 0.1250" in finished.stderr
    finished = call("fit", *words, fitted.model("student"))
    assert "deviation" not in finished.stderr
