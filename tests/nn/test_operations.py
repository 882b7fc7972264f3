"""Nodes of autograd's graph: values and gradients are those of OneFlow's operations in float64."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdtrain.nn.layers import (
    BatchNorm2d,
    Conv2d,
    Dropout,
    Hardswish,
    Linear,
    add,
    channels_first,
    channels_last,
    fork,
    halves,
    interleave,
    max_pool2d,
    mean_over_pixels,
    relu,
    relu_of,
    scale,
    subsample,
)
from kdtrain.nn.operations import is_channels_last, runs_in_onednn
from kdtrain.runtime import flow

Array = npt.NDArray[Any]
Shape = tuple[int, int, int, int]
Function = Callable[..., Any]

UNARY: dict[str, Function] = {
    **{"relu": relu, "hard swish": Hardswish(), "channels_last": channels_last},
    **{"channels_first": channels_first, "fork": fork, "halves": halves},
    **{"subsample": lambda x: subsample(x, 2, 3), "subsample by 1": lambda x: subsample(x, 1, 0)},
    "mean_over_pixels": mean_over_pixels,
}
BINARY: dict[str, Function] = {
    **{"add": add, "add with ReLU": lambda a, b: add(a, b, relu=True), "interleave": interleave},
    "scale": scale,
}
FUNCTIONS = UNARY | BINARY

both_layouts = pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
sizes = st.integers(1, 9)
images = st.tuples(st.integers(1, 3), st.integers(1, 9), sizes, sizes)
layouts = st.tuples(st.booleans(), st.booleans())


def arguments_of(name: str, shape: Shape, seed: int = 0) -> list[Array]:
    """One image batch, or two; the second argument of ``scale`` has a number for each channel."""
    random = np.random.default_rng(seed)
    second = (*shape[:2], 1, 1) if name == "scale" else shape
    shapes = [shape, second] if name in BINARY else [shape]
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def differentiate(
    function: Function,
    arrays: Sequence[Array],
    last: Sequence[bool] = (False, False),
    used: Sequence[bool] = (True, True),
    passes: int = 1,
) -> list[Array]:
    """The results, and the arguments' gradients of a sum over those that are used, with random weights."""
    leaves = [flow.tensor(array, requires_grad=True) for array in arrays]
    given = [channels_last(x) if is_last else x for x, is_last in zip(leaves, last, strict=False)]
    results = function(*given)
    results = [results] if isinstance(results, flow.Tensor) else list(results)
    random = np.random.default_rng(1)
    weights = [random.normal(size=tuple(y.shape)).astype(arrays[0].dtype) for y in results]
    terms = zip(results, weights, used, strict=False)
    loss = sum((y * flow.tensor(weight)).sum() for y, weight, is_used in terms if is_used)
    for number in range(passes):
        loss.backward(retain_graph=number + 1 < passes)
    return [tensor.numpy().copy() for tensor in (*results, *(leaf.grad for leaf in leaves))]


def assert_close(results: list[Array], expected: list[Array]) -> None:
    for result, array in zip(results, expected, strict=True):
        assert result.dtype == np.float32
        assert result.shape == array.shape
        np.testing.assert_allclose(result, array, rtol=0, atol=1e-5 * max(1, np.abs(array).max()))


@pytest.mark.parametrize("name", FUNCTIONS)
@settings(max_examples=20)
@given(shape=images, last=layouts, seed=st.integers(0, 2**32 - 1))
def test_values_and_gradients_are_those_of_oneflows_operations_in_float64(
    name: str, shape: Shape, last: tuple[bool, bool], seed: int
) -> None:
    """In both layouts, and in one for each argument."""
    assume(name != "halves" or shape[1] % 2 == 0)
    arrays = arguments_of(name, shape, seed)
    expected = differentiate(FUNCTIONS[name], [array.astype(np.float64) for array in arrays])
    assert_close(differentiate(FUNCTIONS[name], arrays, last), expected)


@both_layouts
@pytest.mark.parametrize("used", [(True, False), (False, True)])
@pytest.mark.parametrize("function", [fork, halves])
def test_one_of_two_results_may_be_without_use(
    function: Function, used: tuple[bool, bool], last: bool
) -> None:
    (array,) = arguments_of("fork", (3, 4, 5, 6))
    expected = differentiate(function, [array.astype(np.float64)], used=used)
    assert_close(differentiate(function, [array], [last], used), expected)


SMALL, LARGE = Conv2d(4, 4, 3), Linear(256, 512)
LAYERS: dict[str, Function] = {
    "convolution": SMALL,
    "convolution with ReLU": lambda x: relu_of(SMALL, x),
    "batch normalization": BatchNorm2d(4).eval(),
    "max_pool2d": max_pool2d,
    "linear": lambda x: LARGE(x.flatten(1)[:, :1].expand(300, 256)),
    "dropout": Dropout(0.5),
}


@both_layouts
@pytest.mark.parametrize("name", FUNCTIONS | LAYERS)
def test_a_second_backward_pass_adds_the_same_gradients(name: str, last: bool) -> None:
    arrays = arguments_of(name, (300, 4, 5, 6) if name == "linear" else (3, 4, 5, 6))
    gradients = []
    for passes in (1, 2):
        flow.manual_seed(0)
        results = differentiate((FUNCTIONS | LAYERS)[name], arrays, [last] * 2, passes=passes)
        gradients.append(results[-len(arrays) :])
    for once, twice in zip(*gradients, strict=True):
        np.testing.assert_array_equal(2 * once, twice)
        assert once.any()


def test_what_a_backward_pass_needs_survives_until_then() -> None:
    """Attributes of oneflow's own context would be freed by the first read: see docs/oneflow.md."""
    inputs = flow.tensor(np.random.default_rng(0).normal(size=(4, 2, 8, 8)).astype(np.float32))
    layer = Conv2d(2, 2, 3)
    losses = [max_pool2d(layer(inputs)).sum() for _ in range(50)]
    gc.collect()
    for loss in losses:
        loss.backward()
    alone = Conv2d(2, 2, 3)
    alone.load_state_dict(layer.state_dict())
    max_pool2d(alone(inputs)).sum().backward()
    np.testing.assert_allclose(layer.weight.grad.numpy(), 50 * alone.weight.grad.numpy(), rtol=1e-4)


@pytest.mark.parametrize("function", UNARY.values(), ids=UNARY)
def test_parts_of_images_that_lie_channels_last_are_read_as_they_are(function: Function) -> None:
    """They are not contiguous in either layout."""
    (array,) = arguments_of("", (3, 8, 9, 7))
    whole, copy = channels_last(flow.tensor(array)), flow.tensor(array)
    for part in (np.s_[:, 2:6], np.s_[:, :, ::2, 1:], np.s_[1:, :4, 3:5]):
        results, expected = function(whole[part]), function(copy[part].contiguous())
        if isinstance(results, flow.Tensor):
            results, expected = [results], [expected]
        for result, wanted in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result.numpy(), wanted.numpy())


def test_what_onednn_computes_is_float32_and_not_empty() -> None:
    assert runs_in_onednn(flow.ones(2, 3))
    for other in (flow.ones(2, 3, dtype=flow.float64), flow.ones(2, 3, dtype=flow.int32), flow.ones(0, 3)):
        assert not runs_in_onednn(other)


def test_the_layout_of_images_is_seen_in_their_strides() -> None:
    images = flow.ones(2, 3, 4, 5)
    last = channels_last(images)
    assert (last.shape, last.stride()) == (images.shape, (60, 1, 15, 3))
    assert is_channels_last(last)
    assert channels_last(last) is last
    assert channels_first(images) is images
    assert channels_first(last).stride() == images.stride()
    for other in (images, flow.ones(2, 3, 1, 1), flow.ones(2, 1, 4, 5), flow.ones(2, 1)):
        assert not is_channels_last(other)
