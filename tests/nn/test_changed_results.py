"""A network may change the result of a kdtrain ReLU in place: its gradient is right all the same."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kdtrain.nn.layers import BatchNorm2d, Conv2d, add, channels_last, relu, relu_of
from kdtrain.nn.operations import is_channels_last
from kdtrain.nn.own_layers import with_own_layers
from kdtrain.runtime import flow
from tests.nn.definitions import convolve

Array = npt.NDArray[np.float64]
SMALL, LARGE = (3, 4, 5, 6), (8, 16, 24, 25)
both_layouts = pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
RELUS: dict[str, Callable[[], Any]] = {
    "nn.ReLU": lambda: with_own_layers(flow.nn.ReLU()),
    "the last ReLU of a sequence": lambda: with_own_layers(
        flow.nn.Sequential(flow.nn.Identity(), flow.nn.ReLU())
    ),
    "add": lambda: lambda x: add(x, flow.zeros_like(x), relu=True),
    "relu": lambda: relu,
}


def gradient_of(function: Callable[[flow.Tensor], flow.Tensor], leaf: flow.Tensor, x: flow.Tensor) -> Array:
    """The gradient of a leaf: that of a weighted sum over a result that is changed in place."""
    y = function(x)
    random = np.random.default_rng(1)
    change, toward = (flow.tensor(random.normal(size=tuple(y.shape)).astype(np.float32)) for _ in range(2))
    y += channels_last(change) if is_channels_last(y) else change
    (y * toward).sum().backward()
    return np.asarray(leaf.grad.numpy(), np.float64)


def weights_of(shape: tuple[int, ...]) -> Array:
    """The weights of that sum."""
    random = np.random.default_rng(1)
    random.normal(size=shape)
    return random.normal(size=shape).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize(
    ("name", "shape", "last"),
    [
        *itertools.product(list(RELUS)[:3], (SMALL, LARGE), (False, True)),
        *((name, (7, 9), False) for name in list(RELUS)[:2]),  # these are no images
        *(("relu", SMALL, True), ("relu", LARGE, False), ("relu", LARGE, True)),  # else it is OneFlow's
    ],
)
def test_gradient_of_a_relu_whose_result_is_changed_in_place(
    name: str, shape: tuple[int, ...], last: bool
) -> None:
    numbers = np.random.default_rng(0).normal(size=shape)
    x = flow.tensor(numbers.astype(np.float32), requires_grad=True)
    gradient = gradient_of(RELUS[name](), x, channels_last(x) if last else x)
    np.testing.assert_allclose(gradient, weights_of(shape) * (numbers > 0), rtol=1e-6)


@both_layouts
@pytest.mark.parametrize("shape", [SMALL, LARGE])
@pytest.mark.parametrize("in_sequence", [False, True])
def test_gradient_of_a_convolution_that_is_fused_with_a_relu(
    shape: tuple[int, ...], last: bool, in_sequence: bool
) -> None:
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    x, layer = flow.tensor(images, requires_grad=True), Conv2d(shape[1], 6, 3)
    sequence = with_own_layers(flow.nn.Sequential(layer, flow.nn.ReLU()))
    function = sequence if in_sequence else lambda x: relu_of(layer, x)
    gradient = gradient_of(function, layer.bias, channels_last(x) if last else x)
    weight, bias = (parameter.numpy().astype(np.float64) for parameter in (layer.weight, layer.bias))
    before = convolve(images.astype(np.float64), weight) + bias[:, None, None]
    expected = (weights_of(before.shape) * (before > 0)).sum(axis=(0, 2, 3))
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@both_layouts
def test_gradient_of_a_batch_normalization_that_is_fused_with_a_relu(last: bool) -> None:
    numbers = np.random.default_rng(0).normal(size=SMALL)
    x, layer = flow.tensor(numbers.astype(np.float32), requires_grad=True), BatchNorm2d(4).train()
    gradient = gradient_of(lambda x: relu_of(layer, x), layer.bias, channels_last(x) if last else x)
    mean = numbers.mean(axis=(0, 2, 3), keepdims=True)
    expected = (weights_of(SMALL) * (numbers > mean)).sum(axis=(0, 2, 3))
    np.testing.assert_allclose(gradient, expected, rtol=0, atol=1e-5)
