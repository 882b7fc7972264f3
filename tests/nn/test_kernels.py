"""oneDNN's kernels compute the definitions, values and gradients, to 1e-5 of the largest number or term."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from kdtrain.nn import kernels, onednn
from kdtrain.nn.kernels import to_channels_first, to_channels_last
from kdtrain.nn.onednn import Array
from tests.nn import definitions
from tests.nn.definitions import Pair, Windows

Shape = tuple[int, int, int, int]

counts, channels = st.integers(1, 3), st.sampled_from([1, 2, 3, 5, 8, 16, 17])
lengths = st.integers(1, 11)
seeds = st.integers(0, 2**32 - 1)


def pairs(least: int, most: int) -> st.SearchStrategy[Pair]:
    return st.tuples(st.integers(least, most), st.integers(least, most))


images = st.tuples(counts, lengths, lengths, channels)


def draw(seed: int, *shapes: tuple[int, ...]) -> list[Array]:
    random = np.random.default_rng(seed)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def fits(shape: Shape, window: Pair, padding: Pair, dilation: Pair = (1, 1)) -> bool:
    """Whether a window has a place in the padded images."""
    sizes = zip(shape[1:3], window, padding, dilation, strict=True)
    return all(size + 2 * pad > gap * (width - 1) for size, width, pad, gap in sizes)


def largest(*arrays: definitions.Numbers) -> float:
    """The largest product of numbers, one of each array."""
    return math.prod(float(np.abs(array).max()) for array in arrays)


def assert_close(result: Array, expected: definitions.Numbers, size: float) -> None:
    """Compares to 1e-5 of the largest expected number, or of the largest term that it is a sum of."""
    assert result.dtype == np.float32
    assert result.shape == expected.shape
    tolerance = 1e-5 * max(largest(expected), size)
    np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


def check_convolution(
    shape: Shape,
    out: int,
    window: Pair,
    geometry: tuple[Pair, Pair, Pair, int],
    *,
    bias: bool,
    relu: bool,
    seed: int = 0,
) -> None:
    """Compares a convolution and its gradients with the definition."""
    weights = out, shape[3] // geometry[3], *window
    kernel = kernels.ConvolutionKernel.of(shape, weights, *geometry, bias, relu)
    x, weight, added, dy = draw(seed, shape, weights, (out,), kernel.out_shape)
    y, dx, dweight = definitions.convolution(x, weight, dy, *geometry)
    y += added if bias else 0
    result = kernel.forward(x, weight, *([added] if bias else []))
    assert_close(result, np.maximum(y, 0) if relu else y, largest(x, weight))
    assert_close(kernel.gradient_of_images(dy, weight), dx, largest(dy, weight))
    gradients = kernel.gradients_of_weights(dy, x)
    assert_close(gradients[0], dweight, largest(dy, x))
    if bias:
        assert_close(gradients[1], dy.sum((0, 1, 2), dtype=np.float64), largest(dy))
    assert len(gradients) == 1 + bias


@settings(max_examples=150)
@given(
    size=st.tuples(counts, lengths, lengths),
    parts=st.tuples(channels, st.just(1), st.integers(1, 17))
    | st.tuples(st.sampled_from([1, 2, 3, 8]), st.sampled_from([2, 3, 8, 16]), st.sampled_from([1, 2, 4])),
    window=pairs(1, 4),
    stride=pairs(1, 3),
    padding=pairs(0, 2),
    dilation=pairs(1, 2),
    bias=st.booleans(),
    relu=st.booleans(),
    seed=seeds,
)
def test_convolution_is_its_definition(
    size: tuple[int, int, int],
    parts: tuple[int, int, int],
    window: Pair,
    stride: Pair,
    padding: Pair,
    dilation: Pair,
    bias: bool,
    relu: bool,
    seed: int,
) -> None:
    """One channel in each of several groups is "depthwise"."""
    inner, groups, outer = parts
    shape = *size, inner * groups
    assume(fits(shape, window, padding, dilation))
    geometry = stride, padding, dilation, groups
    check_convolution(shape, outer * groups, window, geometry, bias=bias, relu=relu, seed=seed)


@pytest.mark.parametrize(
    ("shape", "out", "window", "geometry"),
    [
        ((4, 64, 65, 32), 48, (3, 3), ((1, 1), (1, 1), (1, 1), 1)),
        ((4, 64, 65, 64), 64, (3, 3), ((1, 1), (1, 1), (1, 1), 64)),
        ((16, 64, 65, 32), 64, (1, 1), ((2, 2), (0, 0), (1, 1), 1)),
    ],
    ids=["3x3", "depthwise", "1x1, strided"],
)
def test_convolution_of_images_larger_than_the_cache(
    shape: Shape, out: int, window: Pair, geometry: tuple[Pair, Pair, Pair, int]
) -> None:
    """Several megabytes, on all cores."""
    check_convolution(shape, out, window, geometry, bias=True, relu=False)


@given(
    images=images,
    window=pairs(1, 4),
    stride=pairs(1, 3),
    padding=pairs(0, 2),
    dilation=pairs(1, 2),
    levels=st.sampled_from([1, 2, 1000]),
    seed=seeds,
)
def test_max_pooling_is_its_definition_also_for_equal_pixels(
    images: Shape, window: Pair, stride: Pair, padding: Pair, dilation: Pair, levels: int, seed: int
) -> None:
    assume(all(pad <= width // 2 for pad, width in zip(padding, window, strict=True)))
    assume(fits(images, window, padding, dilation))
    windows = Windows(images, window, stride, padding, dilation)
    assume(windows.inside.any((2, 3)).all())  # no maximum of nothing
    kernel = kernels.PoolingKernel.of(images, onednn.MAX, window, stride, padding, dilation)
    x = np.random.default_rng(seed).integers(-levels, levels, images).astype(np.float32)
    (dy,) = draw(seed, kernel.out_shape)
    y, dx = definitions.max_pooling(windows, x, dy)
    result, workspace = kernel.forward(x)
    np.testing.assert_array_equal(result, y)
    assert_close(kernel.backward(dy, workspace), dx, largest(dy))


@given(
    images=images,
    window=pairs(1, 4),
    stride=pairs(1, 3),
    padding=pairs(0, 2),
    with_padding=st.booleans(),
    seed=seeds,
)
def test_mean_pooling_is_its_definition(
    images: Shape, window: Pair, stride: Pair, padding: Pair, with_padding: bool, seed: int
) -> None:
    assume(all(pad <= width // 2 for pad, width in zip(padding, window, strict=True)))
    assume(fits(images, window, padding))
    kind = onednn.AVERAGE_WITH_PADDING if with_padding else onednn.AVERAGE
    kernel = kernels.PoolingKernel.of(images, kind, window, stride, padding, (1, 1))
    x, dy = draw(seed, images, kernel.out_shape)
    windows = Windows(images, window, stride, padding)
    y, dx = definitions.mean_pooling(windows, x, dy, with_padding=with_padding)
    result, workspace = kernel.forward(x)
    assert_close(result, y, largest(x))
    assert_close(kernel.backward(dy, workspace), dx, largest(dy))


def check_normalization(shape: Shape, *, of_images: bool, relu: bool, epsilon: float, seed: int) -> None:
    """Compares a batch normalisation and its gradients with the definition."""
    kernel = kernels.BatchNormalizationKernel.of(shape, epsilon, of_images, relu)
    x, dy, scale, shift, mean, variance = draw(seed, shape, shape, *[(shape[3],)] * 4)
    x, variance = 3 * x + 2, variance**2 + np.float32(0.1)
    exact = x.astype(np.float64)
    if of_images:
        expected_mean, expected_variance = exact.mean((0, 1, 2)), exact.var((0, 1, 2))
        mean, variance = np.empty_like(mean), np.empty_like(variance)
    else:
        expected_mean, expected_variance = mean.astype(np.float64), variance.astype(np.float64)
    y, workspace = kernel.forward(x, scale, shift, mean, variance)
    assert_close(mean, expected_mean, 1.0)
    assert_close(variance, expected_variance, 1.0)
    moments = expected_mean, expected_variance, epsilon
    expected = definitions.normalization(exact, scale, shift, *moments)
    terms = largest(x, scale) / math.sqrt(expected_variance.min() + epsilon)
    assert_close(y, np.maximum(expected, 0) if relu else expected, terms)
    gradient = dy.astype(np.float64) * ((y > 0) if relu else 1)
    gradients = definitions.gradients_of_normalization(gradient, exact, scale, *moments, of_images=of_images)
    terms = largest(dy, scale) / math.sqrt(expected_variance.min() + epsilon)
    sizes = terms, largest(dy), largest(dy)
    results = kernel.backward(dy, x, scale, mean, variance, workspace)
    for result, wanted, size in zip(results, gradients, sizes, strict=True):
        assert_close(result, wanted, size)


@given(
    images=images,
    of_images=st.booleans(),
    relu=st.booleans(),
    epsilon=st.sampled_from([1e-5, 1e-3]),
    seed=seeds,
)
def test_batch_normalization_is_its_definition(
    images: Shape, of_images: bool, relu: bool, epsilon: float, seed: int
) -> None:
    assume(not of_images or np.prod(images[:3]) > 3)
    check_normalization(images, of_images=of_images, relu=relu, epsilon=epsilon, seed=seed)


@pytest.mark.parametrize("of_images", [True, False])
def test_batch_normalization_of_images_larger_than_the_cache(of_images: bool) -> None:
    check_normalization((32, 56, 57, 24), of_images=of_images, relu=True, epsilon=1e-5, seed=0)


@given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    kind=st.sampled_from([onednn.RELU, onednn.HARDSWISH]),
    seed=seeds,
)
def test_activations_are_their_definitions(shape: tuple[int, ...], kind: int, seed: int) -> None:
    x, dy = draw(seed, shape, shape)
    x *= 3  # hard swish bends at -3 and 3
    kernel = kernels.ActivationKernel.of(shape, kind)
    y = kernel.forward(x)
    if kind == onednn.RELU:
        expected, slope = np.maximum(x, 0), x > 0
    else:
        exact = x.astype(np.float64)
        expected = exact * np.clip(exact + 3, 0, 6) / 6
        slope = np.where(np.abs(exact) < 3, exact / 3 + 0.5, exact > 0)
    assert_close(y, expected, largest(x))
    assert_close(kernel.backward(dy, y > 0 if kind == onednn.RELU else x), dy * slope, largest(dy))


@given(
    images=images,
    kind=st.sampled_from([onednn.ADD, onednn.MULTIPLY]),
    relu=st.booleans(),
    by_channel=st.booleans(),
    seed=seeds,
)
def test_sums_and_products_of_images_are_numpys(
    images: Shape, kind: int, relu: bool, by_channel: bool, seed: int
) -> None:
    count, _, _, channels = images
    x, y = draw(seed, images, (count, 1, 1, channels) if by_channel else images)
    result = kernels.ElementwiseKernel.of(images, kind, relu, by_channel)(x, y)
    expected = x + y if kind == onednn.ADD else x * y
    np.testing.assert_array_equal(result, np.maximum(expected, 0) if relu else expected)


@given(
    rows=st.integers(1, 40),
    inner=st.integers(1, 40),
    columns=st.integers(1, 40),
    transposed=st.tuples(st.booleans(), st.booleans()),
    bias=st.booleans(),
    seed=seeds,
)
def test_products_are_their_definition(
    rows: int, inner: int, columns: int, transposed: tuple[bool, bool], bias: bool, seed: int
) -> None:
    check_product((rows, inner, columns), transposed, bias=bias, seed=seed)


@pytest.mark.parametrize("transposed", list(itertools.product([False, True], repeat=2)))
def test_products_of_matrices_larger_than_the_cache(transposed: tuple[bool, bool]) -> None:
    check_product((257, 1500, 1100), transposed, bias=True, seed=0)


def check_product(
    sizes: tuple[int, int, int], transposed: tuple[bool, bool], *, bias: bool, seed: int
) -> None:
    """Compares a product with the definition."""
    rows, inner, columns = sizes
    a, b, row = draw(seed, (rows, inner), (inner, columns), (columns,))
    expected = a.astype(np.float64) @ b + (row if bias else 0)
    given = (np.ascontiguousarray(m.T) if turn else m for m, turn in zip((a, b), transposed, strict=True))
    product = kernels.ProductKernel.of(*sizes, transposed, bias)
    assert_close(product(*given, *([row] if bias else [])), expected, largest(a, b))


@given(
    images=images,
    order=st.permutations(range(4)),
    seed=seeds,
)
def test_layouts_change_and_numbers_stay(images: Shape, order: list[int], seed: int) -> None:
    """Arrays of any strides are taken, and a copy is made only where it is needed."""
    (array,) = draw(seed, tuple(images[axis] for axis in order))
    x = array.transpose(np.argsort(order))
    last = to_channels_last(x)
    first = to_channels_first(last)
    for result, expected in ((last, x.transpose(0, 2, 3, 1)), (first, x)):
        np.testing.assert_array_equal(result, expected)
        assert result.flags.c_contiguous
    assert to_channels_last(last.transpose(0, 3, 1, 2)).base is not None


@pytest.mark.parametrize("shape", [(64, 48, 33, 33), (1, 3, 1000, 1001)])
def test_layouts_of_images_larger_than_the_cache(shape: Shape) -> None:
    (x,) = draw(0, shape)
    last = to_channels_last(x)
    np.testing.assert_array_equal(last, x.transpose(0, 2, 3, 1))
    np.testing.assert_array_equal(to_channels_first(last), x)


def test_large_results_begin_at_a_line_of_the_cache() -> None:
    """The size of a result that begins elsewhere is the same, but each register's access takes two lines."""
    results: list[npt.NDArray[Any]] = [onednn.new_array((size,)) for size in (1 << 14, 20_001, 1 << 20)]
    assert all(array.ctypes.data % 64 == 0 for array in results)
