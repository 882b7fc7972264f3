"""Layers named ``auto``: which pair is chosen, and what the fit says about it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest

from kdtrain import DistillationCallback, FeatureMethod, Objective, Recorder, Trainer, UsageError, flow
from kdtrain.callbacks.features import layer_pairs
from kdtrain.data.dataset import Normalization
from kdtrain.data.images.resize import InputConversion, InputForm
from kdtrain.engine.teacher_network import TeacherNetwork
from kdtrain.models.registry import build_model
from plugins.attention import Attention
from plugins.fitnet import FitNet
from plugins.pkt import Pkt
from plugins.rkd import Rkd
from plugins.similarity import Similarity
from plugins.srrl import Srrl
from plugins.vid import Vid
from tests.plugins.reference import Convolutional, images_of, objective_for

SHAPE = (1, 28, 28)
GENERAL: list[type[FeatureMethod]] = [FitNet, Pkt, Rkd, Similarity, Vid]
NETWORKS: list[tuple[str, str, tuple[str, str]]] = [
    ("student_mlp", "hinton_1200", ("fc2", "fc2")),
    ("student_mlp", "teacher_cnn", ("fc2", "fc1")),
    ("student_mlp", "resnet20", ("fc2", "stage3")),
    ("student_cnn", "teacher_cnn", ("block4", "fc1")),
    ("student_cnn", "resnet20", ("block4", "stage3")),
    ("resnet8", "resnet20", ("stage3", "stage3")),
    ("teacher_cnn", "hinton_800", ("fc1", "fc2")),
]
"""Student, teacher and the pair for methods that compare layers of any shapes."""


def objective_of(student: flow.nn.Module, teacher: flow.nn.Module) -> Objective:
    images = flow.zeros(1, *SHAPE)
    objective = Objective.task().with_student(Recorder(student, "student", images))
    return DistillationCallback(teacher).configure(objective)


def chosen(plugin: FeatureMethod, student: str, teacher: str) -> tuple[str, str]:
    networks = (build_model(name, SHAPE, 10) for name in (student, teacher))
    objective = plugin.configure(objective_of(*networks))
    assert objective.student.layers == (plugin.student_layer,), "layers that were tried are forgotten"
    assert objective.teacher.layers == (plugin.teacher_layer,)
    return plugin.student_layer, plugin.teacher_layer


@pytest.mark.parametrize(("student", "teacher", "pair"), NETWORKS)
@pytest.mark.parametrize("method", GENERAL)
def test_the_last_maps_of_equal_size_are_paired_or_else_the_last_layers(
    method: type[FeatureMethod], student: str, teacher: str, pair: tuple[str, str]
) -> None:
    assert chosen(method(), student, teacher) == pair


SPECIAL: list[tuple[FeatureMethod, str, str, tuple[str, str]]] = [
    (Attention(), "student_cnn", "teacher_cnn", ("block4", "conv2")),
    (Attention(), "resnet8", "resnet20", ("stage3", "stage3")),
    (Srrl(), "student_cnn", "teacher_cnn", ("block4", "fc1")),
    (Srrl(), "student_mlp", "resnet20", ("fc2", "stage3")),
    (Srrl(), "student_mlp", "hinton_800", ("fc2", "fc2")),
    (FitNet("auto", "conv2"), "student_cnn", "teacher_cnn", ("block1.0", "conv2")),
    (FitNet("block3", "auto"), "student_cnn", "resnet20", ("block3", "stage3")),
]


@pytest.mark.parametrize(("plugin", "student", "teacher", "pair"), SPECIAL)
def test_a_pair_that_the_method_cannot_compare_is_passed_over(
    plugin: FeatureMethod, student: str, teacher: str, pair: tuple[str, str]
) -> None:
    assert chosen(plugin, student, teacher) == pair


def test_a_method_may_be_configured_again_for_other_networks() -> None:
    """Commands configure it before the fit."""
    plugin = FitNet()
    assert chosen(plugin, "student_mlp", "hinton_800") == ("fc2", "fc2")
    assert chosen(plugin, "student_cnn", "teacher_cnn") == ("block4", "fc1")


def test_layers_within_a_teacher_that_has_its_own_form_of_images() -> None:
    form = InputForm(SHAPE, Normalization((0.1,), (0.3,)))
    inner = build_model("hinton_800", SHAPE, 12)
    teacher = TeacherNetwork(inner, InputConversion(form, form), classes=range(10))
    plugin = FitNet()
    objective = plugin.configure(objective_of(build_model("student_mlp", SHAPE, 10), teacher))
    assert list(objective.terms)[-1] == "fitnet_fc2"


def test_hidden_layers_are_those_with_weights_before_the_logits_as_the_network_runs_them() -> None:
    class Reversed(Convolutional):
        """Its layers are not defined in the order of their use, and a function follows the last one."""

        def __init__(self) -> None:
            super().__init__(2)
            self.norm = flow.nn.BatchNorm2d(1)
            self.first = flow.nn.Conv2d(1, 1, 1)

        def forward(self, x: flow.Tensor) -> flow.Tensor:
            return flow.nn.functional.log_softmax(super().forward(self.first(self.norm(x))), dim=1)

    for network, extra in ((Convolutional(2), {}), (Reversed(), {"first": (1, 8, 8)})):
        recorder = Recorder(network, "student", flow.tensor(images_of(count=2)))
        expected: dict[str, Any] = {**extra, "conv1": (2, 6, 6), "conv2": (2, 4, 4), "fc1": (5,)}
        assert list(recorder.hidden_layers().items()) == list(expected.items())
        assert recorder.layers == ()


def test_pairs_have_an_order() -> None:
    students = {"a": (4, 8, 8), "b": (4, 4, 4), "c": (9,)}
    teachers = {"k": (6, 16, 16), "l": (6, 8, 8), "m": (6, 8, 8), "n": (6, 1, 1), "o": (7,)}
    pairs = layer_pairs(students, teachers)
    assert pairs[:3] == [("a", "m"), ("c", "o"), ("b", "m")], "equal size, the last ones, the last maps"
    assert len(set(pairs)) == len(pairs)
    assert {name for pair in pairs for name in pair} == {*students, *teachers}
    assert layer_pairs(students, {}) == []


def test_without_a_pair_the_error_says_which_layers_there_are() -> None:
    networks = (build_model(name, SHAPE, 10) for name in ("student_mlp", "teacher_cnn"))
    with pytest.raises(UsageError) as error:
        Attention().configure(objective_of(*networks))
    text = str(error.value)
    assert text.startswith("there are no layers of student and teacher that attention can compare (fc2, fc1:")
    assert "The student has fc1 (128), fc2 (64); the teacher has conv1 (32x26x26), conv2 (64x24x24)" in text


def test_a_network_without_hidden_layers_is_named() -> None:
    linear = flow.nn.Sequential(flow.nn.Flatten(), flow.nn.Linear(64, 3))
    with pytest.raises(UsageError, match=r"The student has none; the teacher has conv1 \(3x6x6\)"):
        FitNet().configure(objective_for(linear, Convolutional(3)))


def test_the_fit_logs_the_pair_once_and_only_if_it_was_chosen(
    make_loader: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "kdtrain")
    few, teacher = make_loader(16, batch_size=8), build_model("hinton_800", SHAPE, 10)
    for layers in ((), ("fc1", "fc1")):
        model = build_model("student_mlp", SHAPE, 10)
        callbacks = [DistillationCallback(teacher), FitNet(*layers)]
        Trainer(model, partial(flow.optim.SGD, lr=0.01), callbacks).fit(
            few, few, epochs=1, directory=tmp_path
        )
    lines = [line for line in caplog.messages if line.startswith("fitnet")]
    assert lines == ["fitnet compares the student's layer fc2 (64) with the teacher's fc2 (800)."]
