"""``--omit-class``: a student trained without some classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.experiment.loaders import prepare
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import load_config
from kdtrain.store.checkpoint import load_tensors
from tests.cli.conftest import Call, Fitted, assert_explained


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


def test_a_teacher_trained_on_the_way_sees_every_class(fitted: Fitted, tmp_path: Path, call: Call) -> None:
    words = ("--omit-class", "3", "--teacher-arch", "hinton_800", "--teacher-epochs", "1")
    call("fit", "--mode", "student_kd", *fitted.flags, *words)
    run = tmp_path / "logs/student_kd/version_0"
    configs = [run / "teacher/config.toml", run / "config.toml"]
    assert ["omit_class = []" in file.read_text() for file in configs] == [True, False]


def test_soft_labels_are_those_of_images_that_are_left(fitted: Fitted, tmp_path: Path, call: Call) -> None:
    words = ("--teacher-checkpoint", fitted.model("teacher"), "--omit-class", "3", "--epochs", "1")
    call("fit", "--mode", "student_kd", *fitted.flags, *words)
    omitted = tmp_path / "logs/student_kd/version_0"
    [table] = (omitted.parent.parent / "cache/teacher_logits").glob("*.safetensors")
    tensors, _ = load_tensors(table)
    config = load_config({}, omitted / "config.toml")
    data = load_dataset(config.dataset, config.data_dir)
    train = prepare(data, config, "student", config.seed, "cpu").train
    assert 0 < train.num_images < len(data.train)
    np.testing.assert_array_equal(np.flatnonzero(tensors["known"]), train.source.numbers)


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
    fitted: Fitted, tmp_path: Path, call: Call, flags: tuple[str, ...], reason: str
) -> None:
    words = ("fit", "--mode", "student", *fitted.flags, *flags)
    assert_explained(call.any_code(*words), 2, reason)
    assert not (tmp_path / "logs/student").exists()
