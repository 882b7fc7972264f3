"""Optimizers: the steps of the papers in float64, and OneFlow's state."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kdtrain.nn import optimizers
from kdtrain.runtime import flow

Array = npt.NDArray[Any]
SHAPES = ((3, 4), (5,), (2, 3, 2), (190, 190))  # the last one is larger than a block
STEPS = 6
OPTIMIZERS: dict[str, tuple[Any, Any]] = {
    "adam": (partial(optimizers.Adam, lr=0.01), partial(flow.optim.Adam, lr=0.01)),
    "sgd": (partial(optimizers.SGD, lr=0.1, momentum=0.9), partial(flow.optim.SGD, lr=0.1, momentum=0.9)),
    "adadelta": (partial(optimizers.Adadelta, lr=0.5), partial(flow.optim.Adadelta, lr=0.5)),
}
each_optimizer = pytest.mark.parametrize("name", OPTIMIZERS)


def parameters() -> list[flow.Tensor]:
    random = np.random.default_rng(0)
    return [flow.nn.Parameter(flow.tensor(random.normal(size=shape).astype(np.float32))) for shape in SHAPES]


def gradients(step: int) -> list[Array]:
    random = np.random.default_rng(100 + step)
    return [random.normal(size=shape).astype(np.float32) for shape in SHAPES]


def take(optimizer: Any, weights: list[flow.Tensor], steps: range, frozen: int | None = None) -> None:
    """Makes steps with given gradients; a frozen parameter has none."""
    for step in steps:
        optimizer.zero_grad(set_to_none=True)
        for number, (weight, gradient) in enumerate(zip(weights, gradients(step), strict=True)):
            if number != frozen:
                weight.grad = flow.tensor(gradient)
        optimizer.step()


def numbers(weights: list[flow.Tensor]) -> list[Array]:
    return [weight.detach().numpy().copy() for weight in weights]


def adam(w: Array, all_gradients: list[Array]) -> Array:
    """Kingma, Ba 2015, algorithm 1."""
    m, v = np.zeros_like(w), np.zeros_like(w)
    for t, g in enumerate(all_gradients, 1):
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        w = w - 0.01 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return w


def sgd(w: Array, all_gradients: list[Array]) -> Array:
    momentum = np.zeros_like(w)
    for g in all_gradients:
        momentum = 0.9 * momentum + g
        w = w - 0.1 * momentum
    return w


def adadelta(w: Array, all_gradients: list[Array]) -> Array:
    """Zeiler 2012, algorithm 1."""
    square, moved = np.zeros_like(w), np.zeros_like(w)
    for g in all_gradients:
        square = 0.9 * square + 0.1 * g**2
        change = np.sqrt(moved + 1e-6) / np.sqrt(square + 1e-6) * g
        moved = 0.9 * moved + 0.1 * change**2
        w = w - 0.5 * change
    return w


@pytest.mark.parametrize("formula", [adam, sgd, adadelta])
def test_steps_are_those_of_the_formula_in_float64(formula: Any) -> None:
    weights = parameters()
    before = numbers(weights)
    take(OPTIMIZERS[formula.__name__][0](weights), weights, range(STEPS))
    for number, (start, end) in enumerate(zip(before, numbers(weights), strict=True)):
        seen = [gradients(step)[number].astype(np.float64) for step in range(STEPS)]
        np.testing.assert_allclose(end, formula(start.astype(np.float64), seen), rtol=2e-5, atol=2e-6)


@each_optimizer
def test_the_state_is_oneflows_and_either_goes_on_with_the_other_s(name: str) -> None:
    ends, states = [], []
    for first, then in (OPTIMIZERS[name], OPTIMIZERS[name][::-1]):
        weights = parameters()
        begun = first(weights)
        take(begun, weights, range(3))
        state = begun.state_dict()
        assert state["state"]["step"] == 3
        states.append(
            [{key: tensor.numpy().copy() for key, tensor in state["state"][n].items()} for n in range(4)]
        )
        resumed = then(weights)
        resumed.load_state_dict(state)
        take(resumed, weights, range(3, STEPS))
        ends.append(numbers(weights))
    for own, other, shape in zip(*states, SHAPES, strict=True):
        assert own.keys() == other.keys()
        for key, array in own.items():
            assert array.shape == shape
            np.testing.assert_allclose(array, other[key], rtol=1e-5, atol=1e-7)
    for end, expected in zip(*ends, strict=True):
        np.testing.assert_allclose(end, expected, rtol=1e-5, atol=1e-6)


@each_optimizer
def test_a_parameter_without_a_gradient_stays_and_goes_on_later(name: str) -> None:
    ends = []
    for make in OPTIMIZERS[name]:
        weights = parameters()
        optimizer = make(weights)
        take(optimizer, weights, range(2))
        before = numbers(weights)
        take(optimizer, weights, range(2, 4), frozen=1)
        np.testing.assert_array_equal(numbers(weights)[1], before[1])
        take(optimizer, weights, range(4, 6))
        ends.append(numbers(weights))
    for end, other in zip(*ends, strict=True):
        np.testing.assert_allclose(end, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (partial(own, lr=0.1, **options), partial(of_oneflow, lr=0.1, **options))
        for own, of_oneflow, options in (
            (optimizers.Adam, flow.optim.Adam, {"weight_decay": 0.1}),
            (optimizers.Adam, flow.optim.Adam, {"amsgrad": True}),
            (optimizers.SGD, flow.optim.SGD, {}),
            (optimizers.SGD, flow.optim.SGD, {"momentum": 0.9, "nesterov": True}),
            (optimizers.Adadelta, flow.optim.Adadelta, {"weight_decay": 0.1}),
        )
    ],
)
def test_other_options_are_oneflows_own(make: Any, other: Any) -> None:
    ends = []
    for each in (make, other):
        weights = parameters()
        take(each(weights), weights, range(3))
        ends.append(numbers(weights))
    for end, expected in zip(*ends, strict=True):
        np.testing.assert_array_equal(end, expected)


@each_optimizer
def test_a_gradient_that_is_no_number_reaches_the_weight(name: str) -> None:
    weights = parameters()
    optimizer = OPTIMIZERS[name][0](weights)
    take(optimizer, weights, range(1))
    weights[0].grad = flow.tensor(np.full(SHAPES[0], np.nan, np.float32))
    optimizer.step()
    assert np.isnan(weights[0].numpy()).all()
    assert np.isfinite(weights[1].numpy()).all()
