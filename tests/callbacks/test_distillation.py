"""Distillation: the objective, and the teacher in a fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain import Batch, Callback, Loader, Objective, Output, Run, Teacher, Trainer, build_model, flow
from kdtrain.callbacks import DistillationCallback
from kdtrain.callbacks.distillation import SoftTargets
from kdtrain.data.augmentation import Shift
from kdtrain.data.dataset import Normalization
from kdtrain.data.views import Views, views
from kdtrain.engine.events import BatchEnd, EvalEnd
from kdtrain.errors import CallbackError, UsageError
from kdtrain.store.checkpoint import snapshot
from tests.engine.fits import Notes, mlp
from tests.plugins.reference import assert_agrees, log_softmax, soft_target_formula

SGD = partial(flow.optim.SGD, lr=0.1)
Fit = Callable[..., dict[str, Any]]


@pytest.fixture
def teacher() -> flow.nn.Module:
    flow.manual_seed(7)
    return build_model("teacher_cnn", (1, 28, 28), 10)


@pytest.fixture
def fit(train: Loader, validation: Loader, tmp_path: Path) -> Fit:
    """Fits a student with the given callbacks, and returns its weights."""

    def fit(
        *callbacks: Callback, optimizer: Any = SGD, train: Loader = train, epochs: int = 2
    ) -> dict[str, Any]:
        model = mlp()
        Trainer(model, optimizer, callbacks).fit(train, validation, epochs=epochs, directory=tmp_path)
        return snapshot(model)

    return fit


@pytest.mark.parametrize(
    "optimizer", [SGD, partial(flow.optim.Adam, lr=1e-3), partial(flow.optim.Adadelta, lr=1.0)]
)
def test_alpha_0_is_bit_for_bit_the_plain_student(
    fit: Fit, tmp_path: Path, teacher: flow.nn.Module, optimizer: Any
) -> None:
    plain = fit(optimizer=optimizer)
    idle = DistillationCallback(teacher, 4.0, alpha=0.0, cache_directory=tmp_path)
    distilled = fit(idle, optimizer=optimizer)
    other = DistillationCallback(teacher, 4.0, alpha=0.5, cache_directory=tmp_path)
    changed = fit(other, optimizer=optimizer)
    for name, weights in plain.items():
        np.testing.assert_array_equal(distilled[name], weights)
        assert not np.array_equal(changed[name], weights)


def test_objective_is_the_blend_that_mode_promises(fit: Fit, tmp_path: Path, teacher: flow.nn.Module) -> None:
    notes = Notes()
    fit(DistillationCallback(teacher, 4.0, 0.7, cache_directory=tmp_path), notes)
    assert len(notes.losses) == 8
    for row in notes.losses:
        assert list(row) == ["task", "kd", "total"]
        assert row["total"] == pytest.approx(0.3 * row["task"] + 0.7 * row["kd"], rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 100), st.floats(1, 20), st.floats(0.01, 1), st.integers(0, 2**32 - 1))
def test_value_and_gradient_of_the_blend_agree_with_float64(
    classes: int, temperature: float, alpha: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    student, fixed = rng.uniform(-100, 100, (2, 6, classes)).astype(np.float32)
    labels = rng.integers(0, classes, 6)
    batch = Batch(flow.tensor(fixed), flow.tensor(labels), flow.tensor(np.arange(6)))
    soft_targets = SoftTargets(Teacher(flow.nn.Identity()), temperature)
    objective = Objective.task().blend("kd", soft_targets, alpha)
    soft = soft_target_formula(fixed.astype(np.float64), temperature)

    def blend(logits: Any) -> Any:
        hard = -log_softmax(logits)[np.arange(6), labels].mean()
        return (1 - alpha) * hard + alpha * soft(logits)

    assert_agrees(lambda logits: objective(batch, Output(logits))["total"], blend, student)


def test_a_teacher_equal_to_the_student_has_a_kd_term_of_0(train: Loader) -> None:
    model = mlp()
    batch = next(iter(train.epoch(1)))
    assert SoftTargets(Teacher(model), 5.0)(batch, Output(model(batch.inputs))).item() == 0.0


def test_the_teacher_is_left_alone(fit: Fit, train: Loader, tmp_path: Path, teacher: flow.nn.Module) -> None:
    """It is unchanged to the byte, in evaluation mode, without gradients, and runs once per image.

    16 more images are those that a resumed run recognises it by.
    """
    teacher.train()
    before = snapshot(teacher)
    modes: list[bool] = []
    images: list[int] = []

    def watch(module: flow.nn.Module, inputs: Any, output: flow.Tensor) -> None:
        modes.append(module.training)
        images.append(output.shape[0])
        assert not output.requires_grad

    teacher.register_forward_hook(watch)
    fit(DistillationCallback(teacher, cache_directory=tmp_path), epochs=3)
    assert not any(modes)
    assert not teacher.training
    assert sum(images) == 16 + train.num_images
    assert all(np.array_equal(before[name], after) for name, after in snapshot(teacher).items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_that_is_changed_during_the_fit_is_noticed(
    fit: Fit, tmp_path: Path, teacher: flow.nn.Module
) -> None:
    class Saboteur(Callback):
        def on_eval(self, run: Run, event: EvalEnd) -> None:
            with flow.no_grad():
                teacher.fc2.bias.add_(1e-3)

    with pytest.raises(CallbackError, match=r"teacher's weights changed.*DistillationCallback\.on_fit_end"):
        fit(DistillationCallback(teacher, cache_directory=tmp_path), Saboteur())


def test_the_table_holds_the_teacher_s_logits_of_each_batch(
    fit: Fit, train: Loader, tmp_path: Path, teacher: flow.nn.Module
) -> None:
    callback = DistillationCallback(teacher, cache_directory=tmp_path)
    live = Teacher(teacher)
    fit(callback)
    for batch in train.epoch(3):
        table = callback.teacher.logits(batch).numpy()
        np.testing.assert_allclose(table, live.logits(batch).numpy(), atol=1e-5)


def test_with_endless_augmentation_the_teacher_runs_on_the_student_s_batches(
    fit: Fit, train: Loader, tmp_path: Path, teacher: flow.nn.Module, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[bytes] = []
    teacher.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numpy().tobytes()))

    class Watch(Callback):
        def on_batch(self, run: Run, event: BatchEnd) -> None:
            assert seen[-1] == event.batch.inputs.numpy().tobytes()

    shift = Shift(2, (float(np.asarray(train.inputs).min()),))
    endless = Views(shift, None, 0, 0, "shift=2")
    shifted = Loader(train.inputs, train.targets, 128, num_classes=10, seed=0, views=endless)
    cache = tmp_path / "cache"
    distillation = DistillationCallback(teacher, cache_directory=cache)
    caplog.set_level("INFO", "kdtrain")
    fit(distillation, Watch(), train=shifted)
    assert len(seen) == 3 + 2 * len(shifted)  # to know it again, to count the classes, to time, then all
    assert len(set(seen)) == len(seen) - 1
    assert not cache.exists()
    assert [record.name for record in caplog.records] == ["kdtrain.callbacks.distillation"]
    assert "teacher runs at every step" in caplog.text


def test_augmented_images_are_not_looked_up_in_the_table_of_an_earlier_fit(
    fit: Fit, train: Loader, teacher: flow.nn.Module
) -> None:
    distillation = DistillationCallback(teacher)
    fit(distillation, epochs=1)
    shifted = Loader(
        train.inputs,
        train.targets,
        128,
        num_classes=10,
        seed=0,
        views=views("shift=2", Normalization((0.0,), (1.0,)), 0, 0),
    )
    runs: list[int] = []
    teacher.register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    fit(distillation, train=shifted, epochs=1)
    assert sum(runs) == 16 + 1 + 128 + train.num_images  # to know it again, to count classes, to time


def test_a_teacher_of_other_classes_is_refused(fit: Fit, tmp_path: Path) -> None:
    seven = build_model("student_mlp", (1, 28, 28), 7)
    with pytest.raises(CallbackError, match="7 classes, the data have 10"):
        fit(DistillationCallback(seven, cache_directory=tmp_path))


@pytest.mark.parametrize(
    ("name", "values"), [("temperature", (0.0, -1.0, math.nan, math.inf)), ("alpha", (-0.1, 1.1, math.nan))]
)
def test_impossible_temperatures_and_alphas_are_refused(
    teacher: flow.nn.Module, tmp_path: Path, name: str, values: tuple[float, ...]
) -> None:
    for value in values:
        with pytest.raises(UsageError, match=f"{name}={value}"):
            DistillationCallback(teacher, **{name: value}, cache_directory=tmp_path)


def test_one_callback_teaches_fits_of_other_images(
    fit: Fit, tmp_path: Path, teacher: flow.nn.Module, train: Loader, make_loader: Callable[..., Loader]
) -> None:
    distillation = DistillationCallback(teacher, cache_directory=tmp_path / "cache")
    fit(distillation, epochs=1)
    others = make_loader(512, start=2000)
    again = fit(distillation, train=others, epochs=1)
    alone = fit(DistillationCallback(teacher), train=others, epochs=1)
    for name, weights in alone.items():
        np.testing.assert_array_equal(again[name], weights)
