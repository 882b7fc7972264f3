"""Distillation: the objective, and the teacher in a fit."""

from __future__ import annotations

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
from kdtrain.engine.events import BatchEnd, EvalEnd
from kdtrain.errors import CallbackError, UsageError
from kdtrain.store.checkpoint import snapshot
from tests.engine.notes import Notes

SGD = partial(flow.optim.SGD, lr=0.1)


@pytest.fixture
def teacher() -> flow.nn.Module:
    flow.manual_seed(7)
    return build_model("teacher_cnn", (1, 28, 28), 10)


def _fit(
    train: Loader,
    validation: Loader,
    folder: Path,
    *callbacks: Callback,
    optimizer: Any = SGD,
    epochs: int = 2,
) -> dict[str, Any]:
    flow.manual_seed(0)
    model = build_model("student_mlp", (1, 28, 28), 10)
    Trainer(model, optimizer, callbacks).fit(train, validation, epochs=epochs, directory=folder)
    return snapshot(model)


@pytest.mark.parametrize(
    "optimizer", [SGD, partial(flow.optim.Adam, lr=1e-3), partial(flow.optim.Adadelta, lr=1.0)]
)
def test_alpha_0_is_bit_for_bit_the_plain_student(
    train: Loader, validation: Loader, tmp_path: Path, teacher: flow.nn.Module, optimizer: Any
) -> None:
    plain = _fit(train, validation, tmp_path, optimizer=optimizer)
    idle = DistillationCallback(teacher, 4.0, alpha=0.0, cache_directory=tmp_path)
    distilled = _fit(train, validation, tmp_path, idle, optimizer=optimizer)
    other = DistillationCallback(teacher, 4.0, alpha=0.5, cache_directory=tmp_path)
    changed = _fit(train, validation, tmp_path, other, optimizer=optimizer)
    for name, weights in plain.items():
        np.testing.assert_array_equal(distilled[name], weights)
        assert not np.array_equal(changed[name], weights)


def test_the_objective_is_the_blend_that_the_mode_promises(
    train: Loader, validation: Loader, tmp_path: Path, teacher: flow.nn.Module
) -> None:
    notes = Notes()
    distillation = DistillationCallback(teacher, 4.0, 0.7, cache_directory=tmp_path)
    _fit(train, validation, tmp_path, distillation, notes)
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
    logits = flow.tensor(student, requires_grad=True)
    batch = Batch(flow.tensor(fixed), flow.tensor(labels), flow.tensor(np.arange(6)))
    teacher = Teacher(flow.nn.Identity())
    objective = Objective.task().blend("kd", SoftTargets(teacher, temperature), alpha)
    loss = objective(batch, Output(logits))["total"]
    loss.backward()

    def softmax(z: Any) -> Any:
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    s, t = student.astype(np.float64), fixed.astype(np.float64)
    hot = np.eye(classes)[labels]
    log_q = s / temperature - (s / temperature).max(axis=1, keepdims=True)
    log_q -= np.log(np.exp(log_q).sum(axis=1, keepdims=True))
    log_p = t / temperature - (t / temperature).max(axis=1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    hard = s - s.max(axis=1, keepdims=True)
    hard = (-(hot * (hard - np.log(np.exp(hard).sum(axis=1, keepdims=True))))).sum() / 6
    soft = temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum() / 6
    gradient = (1 - alpha) * (softmax(s) - hot) / 6 + alpha * temperature * (
        np.exp(log_q) - np.exp(log_p)
    ) / 6
    np.testing.assert_allclose(loss.item(), (1 - alpha) * hard + alpha * soft, rtol=2e-6, atol=1e-6)
    np.testing.assert_allclose(logits.grad.numpy(), gradient, rtol=2e-6, atol=1e-6)


def test_a_teacher_equal_to_the_student_has_a_kd_term_of_0(train: Loader) -> None:
    model = build_model("student_mlp", (1, 28, 28), 10)
    batch = next(iter(train.epoch(1)))
    assert SoftTargets(Teacher(model), 5.0)(batch, Output(model(batch.inputs))).item() == 0.0


def test_the_teacher_is_left_alone(
    train: Loader, validation: Loader, tmp_path: Path, teacher: flow.nn.Module
) -> None:
    """It is unchanged to the byte, in evaluation mode, without gradients, and runs once per image."""
    teacher.train()
    before = snapshot(teacher)
    modes: list[bool] = []
    images: list[int] = []

    def watch(module: flow.nn.Module, inputs: Any, output: flow.Tensor) -> None:
        modes.append(module.training)
        images.append(output.shape[0])
        assert not output.requires_grad

    teacher.register_forward_hook(watch)
    _fit(train, validation, tmp_path, DistillationCallback(teacher, cache_directory=tmp_path), epochs=3)
    assert not any(modes)
    assert not teacher.training
    assert sum(images) == train.num_images + 1  # and one to count its classes
    assert all(np.array_equal(before[name], after) for name, after in snapshot(teacher).items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_teacher_that_is_changed_during_the_fit_is_noticed(
    train: Loader, validation: Loader, tmp_path: Path, teacher: flow.nn.Module
) -> None:
    class Saboteur(Callback):
        def on_eval(self, run: Run, event: EvalEnd) -> None:
            with flow.no_grad():
                teacher.fc2.bias.add_(1e-3)

    with pytest.raises(CallbackError, match=r"teacher's weights changed.*DistillationCallback\.on_fit_end"):
        _fit(train, validation, tmp_path, DistillationCallback(teacher, cache_directory=tmp_path), Saboteur())


def test_the_table_holds_the_teacher_s_logits_of_each_batch(
    train: Loader, validation: Loader, tmp_path: Path, teacher: flow.nn.Module
) -> None:
    callback = DistillationCallback(teacher, cache_directory=tmp_path)
    live = Teacher(teacher)
    _fit(train, validation, tmp_path, callback)
    for batch in train.epoch(3):
        table = callback.teacher.logits(batch).numpy()
        np.testing.assert_allclose(table, live.logits(batch).numpy(), atol=1e-5)


def test_with_augmentation_the_teacher_runs_on_the_student_s_batches(
    train: Loader,
    validation: Loader,
    tmp_path: Path,
    teacher: flow.nn.Module,
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[bytes] = []
    teacher.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numpy().tobytes()))

    class Watch(Callback):
        def on_batch(self, run: Run, event: BatchEnd) -> None:
            assert seen[-1] == event.batch.inputs.numpy().tobytes()

    shifted = Loader(
        train.inputs,
        train.targets,
        128,
        num_classes=10,
        seed=0,
        augment=Shift(2, (float(np.asarray(train.inputs).min()),)),
    )
    cache = tmp_path / "cache"
    distillation = DistillationCallback(teacher, cache_directory=cache)
    caplog.set_level("INFO", "kdtrain")
    _fit(shifted, validation, tmp_path, distillation, Watch())
    assert len(set(seen)) == len(seen) == 1 + 2 * len(shifted)  # one to count the classes, then every batch
    assert not cache.exists()
    assert [record.name for record in caplog.records] == ["kdtrain.callbacks.distillation"]
    assert "teacher runs at every step" in caplog.text


def test_augmented_images_are_not_looked_up_in_the_table_of_an_earlier_fit(
    train: Loader, validation: Loader, tmp_path: Path, teacher: flow.nn.Module
) -> None:
    distillation = DistillationCallback(teacher)
    _fit(train, validation, tmp_path, distillation, epochs=1)
    shifted = Loader(train.inputs, train.targets, 128, num_classes=10, seed=0, augment=Shift(2, (0.0,)))
    runs: list[int] = []
    teacher.register_forward_hook(lambda module, inputs, output: runs.append(len(output)))
    _fit(shifted, validation, tmp_path, distillation, epochs=1)
    assert sum(runs) == 1 + train.num_images  # one to count the classes


def test_a_teacher_of_other_classes_is_refused(train: Loader, validation: Loader, tmp_path: Path) -> None:
    seven = build_model("student_mlp", (1, 28, 28), 7)
    with pytest.raises(CallbackError, match="7 classes, the data have 10"):
        _fit(train, validation, tmp_path, DistillationCallback(seven, cache_directory=tmp_path))


@pytest.mark.parametrize(
    ("temperature", "alpha", "named"),
    [
        (0.0, 0.5, "temperature 0.0"),
        (-1.0, 0.5, "temperature -1"),
        (float("nan"), 0.5, "temperature nan"),
        (float("inf"), 0.5, "temperature inf"),
        (4.0, -0.1, "alpha -0.1"),
        (4.0, 1.1, "alpha 1.1"),
        (4.0, float("nan"), "alpha nan"),
    ],
)
def test_impossible_temperatures_and_alphas_are_refused(
    teacher: flow.nn.Module, tmp_path: Path, temperature: float, alpha: float, named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        DistillationCallback(teacher, temperature, alpha, cache_directory=tmp_path)
