"""``--omit-class`` and ``kdtrain bias``: a student trained without some classes, and its raised biases."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.experiment.loaders import prepare
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import load_config
from kdtrain.store.checkpoint import load_model, load_tensors
from tests.cli.conftest import CallKdtrain, Fitted, assert_explained
from tests.conftest import RunKdtrain


@pytest.fixture(scope="module")
def omitted(tmp_path_factory: pytest.TempPathFactory, fitted: Fitted, run_kdtrain: RunKdtrain) -> Path:
    """A student that has learned of the class 3 from soft labels only; returns its run's directory."""
    folder = tmp_path_factory.mktemp("omitted")
    words = ("--teacher-checkpoint", fitted.model("teacher"), "--omit-class", "3", "--temperature", "8")
    finished = run_kdtrain("fit", "--mode", "student_kd", *fitted.flags, *words, cwd=folder)
    assert finished.returncode == 0, finished.stderr
    return folder / "logs/student_kd/version_0"


def test_students_do_without_the_class_but_everything_else_stays(mnist: Dataset) -> None:
    whole = prepare(mnist, FitConfig(), "student", 0, "cpu")
    config = FitConfig(omit_class=("3", "8"))
    teacher, student = (prepare(mnist, config, network, 0, "cpu") for network in ("teacher", "student"))
    kept = ~np.isin(whole.train.targets, [3, 8])
    assert np.array_equal(student.train.targets, whole.train.targets[kept])
    assert np.array_equal(student.train.inputs[:100], np.asarray(whole.train.inputs)[kept][:100])
    assert np.array_equal(teacher.train.targets, whole.train.targets)
    assert np.array_equal(student.validation.targets, whole.validation.targets)
    assert np.array_equal(student.test.targets, whole.test.targets)
    few = FitConfig(omit_class=("3",), limit_train=100)
    assert prepare(mnist, few, "student", 0, "cpu").train.num_images == 100


def test_a_teacher_that_is_trained_on_the_way_sees_every_class(
    fitted: Fitted, tmp_path: Path, call_kdtrain: CallKdtrain
) -> None:
    words = ("--omit-class", "3", "--teacher-arch", "hinton_800", "--teacher-epochs", "1")
    finished = call_kdtrain("fit", "--mode", "student_kd", *fitted.flags, *words, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    run = tmp_path / "logs/student_kd/version_0"
    configs = [run / "teacher/config.toml", run / "config.toml"]
    assert ["omit_class = []" in file.read_text() for file in configs] == [True, False]


def test_soft_labels_are_those_of_the_images_that_are_left(omitted: Path) -> None:
    [table] = (omitted.parent.parent / "cache/teacher_logits").glob("*.safetensors")
    tensors, _ = load_tensors(table)
    config = load_config({}, omitted / "config.toml")
    data = load_dataset(config.dataset, config.data_dir)
    train = prepare(data, config, "student", config.seed, "cpu").train
    assert 0 < train.num_images < len(data.train)
    np.testing.assert_array_equal(np.flatnonzero(tensors["known"]), train.source.numbers)


@pytest.mark.parametrize("by", ["transfer", "validation", "labels"])
def test_biases_are_raised_in_a_new_checkpoint(omitted: Path, call_kdtrain: CallKdtrain, by: str) -> None:
    cwd = omitted.parent.parent.parent
    best = (omitted / "checkpoints/best.safetensors").read_bytes()
    finished = call_kdtrain("bias", omitted, "--by", by, "--json", cwd=cwd)
    assert finished.returncode == 0, finished.stderr
    answer = json.loads(finished.stdout)
    assert (answer["classes"], answer["by"]) == (["3"], by)
    errors = answer["validation_errors"]
    assert errors["images"] == 300
    if by == "labels":
        assert errors["after"] <= errors["before"]
    changed = load_model(answer["checkpoint"])
    assert Path(answer["checkpoint"]) == omitted / f"checkpoints/bias_{by}.safetensors"
    original = load_model(omitted / "checkpoints/best.safetensors")
    moved = changed.weights["fc3.bias"].astype(np.float64) - original.weights["fc3.bias"].astype(np.float64)
    np.testing.assert_allclose(moved, [0, 0, 0, answer["shift"]], atol=1e-5)
    assert changed.card.metrics["bias_shift"] == answer["shift"]
    assert changed.card.metrics["val/accuracy"] == pytest.approx(1 - errors["after"] / 300)
    assert (omitted / "checkpoints/best.safetensors").read_bytes() == best


def test_text_names_the_classes_and_the_file(omitted: Path, tiles: Path, call_kdtrain: CallKdtrain) -> None:
    cwd = omitted.parent.parent.parent
    finished = call_kdtrain("bias", omitted, "--output", "new/raised.safetensors", cwd=cwd)
    assert finished.returncode == 0, finished.stderr
    first, *_, before, after, last = finished.stdout.splitlines()
    assert first.startswith("Bias of 3 raised by ")
    assert [line.split()[0] for line in (before, after)] == ["before", "after"]
    assert last == "Weights: new/raised.safetensors"
    assert call_kdtrain("eval", "new/raised.safetensors", "--data-dir", tiles, cwd=cwd).returncode == 0


def test_what_cannot_be_raised_is_explained(
    fitted: Fitted, omitted: Path, tmp_path: Path, call_kdtrain: CallKdtrain
) -> None:
    for mode in ("teacher", "student_kd"):
        finished = call_kdtrain("bias", fitted.run(mode), cwd=fitted.folder)
        assert_explained(finished, 2, "--omit-class", str(fitted.run(mode)))
    alone = ("fit", "--mode", "student", *fitted.flags, "--omit-class", "3", "--limit-train", "64")
    assert call_kdtrain(*alone, cwd=tmp_path).returncode == 0
    run = "logs/student/version_0"
    finished = call_kdtrain("bias", run, cwd=tmp_path)
    assert_explained(finished, 2, "--by validation", run, "--by labels")
    assert call_kdtrain("bias", run, "--by", "labels", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (("--omit-class", "33"), "--omit-class: there is no class '33'"),
        (("--mode", "teacher", "--omit-class", "3"), "--omit-class 3"),
        (tuple(word for name in "0123" for word in ("--omit-class", name)), "no training images"),
        (("--omit-class", "3", "--limit-train", "1200"), "--limit-train 1200"),
    ],
)
def test_classes_that_cannot_be_omitted_are_named(
    fitted: Fitted, tmp_path: Path, call_kdtrain: CallKdtrain, flags: tuple[str, ...], reason: str
) -> None:
    words = ("fit", "--mode", "student", *fitted.flags, *flags)
    assert_explained(call_kdtrain(*words, cwd=tmp_path), 2, reason)
    assert not (tmp_path / "logs/student").exists()
