"""Smoothed labels: the right loss and gradient, alone and under distillation."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain import (
    Batch,
    Callback,
    DistillationCallback,
    Loader,
    Objective,
    Output,
    Trainer,
    UsageError,
    flow,
)
from kdtrain.engine.losses import cross_entropy
from kdtrain.models.registry import build_model
from kdtrain.store.checkpoint import snapshot
from plugins.label_smoothing import LabelSmoothing

Array = npt.NDArray[np.float64]
SGD = partial(flow.optim.SGD, lr=0.1)


def batch_of(targets: npt.NDArray[np.int64]) -> Batch:
    return Batch(flow.zeros(len(targets), 1), flow.tensor(targets), flow.tensor(np.arange(len(targets))))


def reference(logits: Array, targets: npt.NDArray[np.int64], epsilon: float) -> tuple[float, Array]:
    """The mean of -sum(q log p) over the images, and its gradient, in float64."""
    number, classes = logits.shape
    q = np.full((number, classes), epsilon / (classes - 1))
    q[np.arange(number), targets] = 1.0 - epsilon
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-(q * log_p).sum(axis=1).mean()), (np.exp(log_p) - q) / number


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 40),
    classes=st.integers(2, 100),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 10.0, 100.0]),
    epsilon=st.floats(0, 1, exclude_max=True),
)
def test_loss_and_gradient_equal_an_independent_formula(
    seed: int, images: int, classes: int, scale: float, epsilon: float
) -> None:
    random = np.random.default_rng(seed)
    logits = (random.uniform(-1, 1, (images, classes)) * scale).astype(np.float32)
    targets = random.integers(0, classes, images)
    inputs = flow.tensor(logits, requires_grad=True)
    loss = LabelSmoothing(epsilon).smoothed_cross_entropy(batch_of(targets), Output(inputs))
    loss.backward()
    value, gradient = reference(logits.astype(np.float64), targets, epsilon)
    assert loss.dtype == flow.float32
    assert abs(loss.item() - value) <= 1e-6 * max(1.0, value)
    np.testing.assert_allclose(inputs.grad.numpy(), gradient, rtol=0, atol=1e-6)


def test_no_smoothing_is_plain_cross_entropy() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(64, 10)).astype(np.float32)
    batch = batch_of(random.integers(0, 10, 64))
    results = []
    for term in (LabelSmoothing(0.0).smoothed_cross_entropy, cross_entropy):
        inputs = flow.tensor(logits, requires_grad=True)
        loss = term(batch, Output(inputs))
        loss.backward()
        results.append((loss.item(), inputs.grad.numpy().copy()))
    assert results[0][0] == pytest.approx(results[1][0], abs=2e-6)  # OneFlow's own is that exact
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=0, atol=1e-7)


def test_it_takes_the_place_and_the_weight_of_the_task() -> None:
    smoothing = LabelSmoothing(0.1)
    before = Objective.task().add("extra", cross_entropy, 2.0)
    after = smoothing.configure(before)
    assert list(after.terms) == ["task", "extra"]
    assert [term.weight for term in after.terms.values()] == [1.0, 2.0]
    assert after.terms["task"].term == smoothing.smoothed_cross_entropy
    assert before.terms["task"].term is cross_entropy


@pytest.mark.parametrize("epsilon", [-0.1, 1.0, 2.0, float("nan")])
def test_epsilon_must_leave_something_on_the_label(epsilon: float) -> None:
    with pytest.raises(UsageError, match="it must be from 0 to below 1"):
        LabelSmoothing(epsilon)


def test_order_with_distillation_does_not_matter(tmp_path: Path, train: Loader, validation: Loader) -> None:
    flow.manual_seed(7)
    teacher = build_model("student_mlp", (1, 28, 28), 10)

    def fit(name: str, epsilon: float, smoothing_first: bool) -> dict[str, bytes]:
        flow.manual_seed(0)
        student = build_model("student_mlp", (1, 28, 28), 10)
        callbacks: list[Callback] = [
            LabelSmoothing(epsilon),
            DistillationCallback(teacher, 4.0, 0.5, cache_directory=tmp_path / "cache"),
        ]
        trainer = Trainer(student, SGD, callbacks if smoothing_first else callbacks[::-1])
        trainer.fit(train, validation, epochs=1, directory=tmp_path / name)
        return {name: array.tobytes() for name, array in snapshot(student).items()}

    first, last = fit("first", 0.2, True), fit("last", 0.2, False)
    assert first == last
    assert first != fit("other", 0.0, True), "smoothing makes a difference under distillation, too"
