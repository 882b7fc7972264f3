"""The limit on the norm of all gradients, against a formula in float64, and in the training loop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain import Batch, Callback, Loader, Objective, Output, Run, Trainer, flow
from kdtrain.callbacks import StopOnNonFinite
from kdtrain.engine.events import BatchEnd
from kdtrain.engine.losses import clip_gradients
from kdtrain.errors import CallbackError
from kdtrain.store.checkpoint import snapshot
from tests.conftest import ADAM
from tests.engine.fits import mlp

SHAPES: list[tuple[int, ...]] = [(3, 4), (7,), (1,), (2, 3, 3, 3), (300, 784)]


def optimizer_with(gradients: Sequence[Any]) -> flow.optim.Optimizer:
    """An optimizer of a parameter for each gradient, in two groups; None for no gradient."""
    parameters = []
    for gradient in gradients:
        parameters.append(flow.nn.Parameter(flow.zeros(*(2,) if gradient is None else gradient.shape)))
        if gradient is not None:
            (parameters[-1] * flow.tensor(gradient)).sum().backward()
    return flow.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:]}], lr=0.1)


def gradients_of(optimizer: flow.optim.Optimizer) -> list[Any]:
    parameters = [p for group in optimizer.param_groups for p in group.parameters]
    return [None if p.grad is None else p.grad.numpy().copy() for p in parameters]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([1e-6, 1e-3, 1.0, 1e6]),
    limit=st.sampled_from([1e-6, 0.01, 1.0, 100.0, 1e6]),
    present=st.lists(st.booleans(), min_size=len(SHAPES), max_size=len(SHAPES)),
)
def test_gradients_equal_an_independent_formula(
    seed: int, scale: float, limit: float, present: list[bool]
) -> None:
    random = np.random.default_rng(seed)
    gradients = [
        (random.normal(size=shape) * scale).astype(np.float32) if given_here else None
        for shape, given_here in zip(SHAPES, present, strict=True)
    ]
    optimizer = optimizer_with(gradients)
    clip_gradients(optimizer, limit)
    exact = [g.astype(np.float64) for g in gradients if g is not None]
    norm = np.sqrt(sum((g**2).sum() for g in exact))
    factor = limit / norm if norm > limit else 1.0
    clipped = gradients_of(optimizer)
    assert [g is None for g in clipped] == [g is None for g in gradients]
    for gradient, expected in zip([g for g in clipped if g is not None], exact, strict=True):
        np.testing.assert_allclose(gradient, expected * factor, rtol=5e-6)


@pytest.mark.parametrize("shape", [(2,), (300, 784)])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e25])
def test_gradients_that_are_not_finite_or_have_squares_beyond_float32_become_nan(
    bad: float, shape: tuple[int, ...]
) -> None:
    gradient = np.ones(shape, np.float32)
    gradient[-1] = bad
    optimizer = optimizer_with([np.ones((3, 4), np.float32), gradient])
    clip_gradients(optimizer, 0.5)
    assert all(np.isnan(clipped).all() for clipped in gradients_of(optimizer))


def test_zero_gradients_stay_zero_and_no_gradients_are_no_error() -> None:
    optimizer = optimizer_with([np.zeros((3, 4), np.float32), None])
    clip_gradients(optimizer, 0.5)
    assert not gradients_of(optimizer)[0].any()
    clip_gradients(optimizer_with([None, None]), 0.5)


def test_the_norm_of_a_large_layer_is_exact() -> None:
    gradient = np.random.default_rng(0).normal(size=(3000, 1000)).astype(np.float32)
    optimizer = optimizer_with([gradient])
    clip_gradients(optimizer, 1.0)
    expected = gradient / np.sqrt((gradient.astype(np.float64) ** 2).sum())
    np.testing.assert_allclose(gradients_of(optimizer)[0], expected, rtol=5e-6)


def test_no_step_uses_a_longer_gradient(train: Loader, validation: Loader, tmp_path: Path) -> None:
    class Norm(Callback):
        def __init__(self) -> None:
            self.norms: list[float] = []

        def on_batch(self, run: Run, event: BatchEnd) -> None:
            gradients = [p.grad.numpy().astype(np.float64) for p in run.model.parameters()]
            self.norms.append(float(np.sqrt(sum((g**2).sum() for g in gradients))))

    free, limited = Norm(), Norm()
    for name, norm, limit in (("free", free, None), ("limited", limited, 0.25)):
        trainer = Trainer(mlp(), ADAM, [norm], clip_grad_norm=limit)
        trainer.fit(train, validation, epochs=1, directory=tmp_path / name)
    assert min(free.norms) > 0.25
    assert limited.norms == pytest.approx([0.25] * 4, rel=1e-5)


def test_a_limit_that_is_never_reached_changes_nothing(
    train: Loader, validation: Loader, tmp_path: Path
) -> None:
    weights = []
    for limit in (None, 1e6):
        network = mlp()
        Trainer(network, ADAM, clip_grad_norm=limit).fit(
            train, validation, epochs=1, directory=tmp_path / str(limit)
        )
        weights.append(snapshot(network))
    for name, array in weights[0].items():
        np.testing.assert_array_equal(array, weights[1][name])


class Steep(Callback):
    """Adds a term whose loss is always 0, and whose slope is not a number at the second step."""

    def configure(self, objective: Objective) -> Objective:
        self.steps = 0
        return objective.add("steep", self.loss)

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        self.steps += 1
        flat = output.logits.sum() * 0.0
        return flat.sqrt() if self.steps == 2 else flat


@pytest.mark.parametrize("limit", [None, 1.0])
def test_a_gradient_that_is_not_finite_ends_the_fit(
    make_loader: Callable[..., Loader], validation: Loader, tmp_path: Path, limit: float | None
) -> None:
    trainer = Trainer(mlp(), ADAM, [Steep(), StopOnNonFinite()], clip_grad_norm=limit)
    with pytest.raises(CallbackError, match="not finite at step 3 "):
        trainer.fit(make_loader(512), validation, epochs=1, directory=tmp_path)
