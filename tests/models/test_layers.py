"""kdtrain's layers compute what OneFlow's do, and dropout follows the seed."""

from __future__ import annotations

import gc
import resource
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kdtrain.models.layers import Conv2d, Dropout, max_pool2d
from kdtrain.models.networks import TeacherCnn
from kdtrain.runtime import flow
from kdtrain.runtime.processes import Job, run_jobs
from tests.models.convolution import convolve

Array = npt.NDArray[np.float32]


def forward_and_backward(
    layer: flow.nn.Module, images: Array, toward: Array, *, images_learn: bool = True
) -> list[Array]:
    """The output, and the gradients of sum(output * toward) for parameters, and images that learn."""
    inputs = flow.tensor(images, requires_grad=images_learn)
    output = layer(inputs)
    (output * flow.tensor(toward)).sum().backward()
    assert (inputs.grad is not None) == images_learn
    gradients = [tensor.grad for tensor in ([inputs] if images_learn else []) + list(layer.parameters())]
    return [tensor.numpy().copy() for tensor in (output, *gradients)]


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"stride": 2, "padding": 1}, {"dilation": 2, "padding": (2, 1)}, {"groups": 2}],
)
@pytest.mark.parametrize("images_learn", [True, False])
def test_convolution_equals_oneflows(options: dict[str, object], images_learn: bool) -> None:
    random = np.random.default_rng(0)
    reference = flow.nn.Conv2d(4, 6, 3, **options)
    layer = Conv2d(4, 6, 3, **options)
    layer.load_state_dict(reference.state_dict())
    assert list(dict(layer.named_parameters())) == list(dict(reference.named_parameters()))
    images = random.normal(size=(5, 4, 11, 9)).astype(np.float32)
    toward = random.normal(size=tuple(reference(flow.tensor(images)).shape)).astype(np.float32)
    results = forward_and_backward(layer, images, toward, images_learn=images_learn)
    references = forward_and_backward(reference, images, toward, images_learn=images_learn)
    for result, expected in zip(results, references, strict=True):
        assert result.shape == expected.shape
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)


def convolve_and_differentiate(*arrays: Array) -> list[npt.NDArray[np.float64]]:
    """A convolution by its definition in float64, and the gradients of sum(output * toward).

    Given are images, weight, bias and ``toward``.
    """
    x, weight, bias, toward = (array.astype(np.float64) for array in arrays)
    height, width = toward.shape[2:]
    dx, dweight = np.zeros(x.shape), np.zeros(weight.shape)
    for i, j in np.ndindex(weight.shape[2:]):
        place = np.s_[:, :, i : i + height, j : j + width]
        dx[place] += np.einsum("nohw,oc->nchw", toward, weight[:, :, i, j])
        dweight[:, :, i, j] = np.einsum("nohw,nchw->oc", toward, x[place])
    return [convolve(x, weight) + bias[:, None, None], dx, dweight, toward.sum((0, 2, 3))]


@given(
    channels=st.tuples(st.integers(1, 20), st.integers(1, 6)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    places=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    kind=st.sampled_from(["float32", "float64"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_convolution_is_what_the_definition_says(
    channels: tuple[int, int],
    kernel: tuple[int, int],
    places: tuple[int, int],
    padding: tuple[int, int],
    kind: str,
    seed: int,
) -> None:
    random = np.random.default_rng(seed)
    sizes = [
        place + size - 1 - 2 * margin for place, size, margin in zip(places, kernel, padding, strict=True)
    ]
    assume(min(sizes) > 0)
    images = random.normal(size=(3, channels[0], *sizes)).astype(kind)
    toward = random.normal(size=(3, channels[1], *places)).astype(kind)
    layer = Conv2d(*channels, kernel, padding=padding).to(getattr(flow, kind))
    weight, bias = layer.weight.numpy().copy(), layer.bias.numpy().copy()
    down, right = padding
    padded = np.pad(images, ((0, 0), (0, 0), *((margin, margin) for margin in padding)))
    y, dx, dweight, dbias = convolve_and_differentiate(padded, weight, bias, toward)
    dx = dx[:, :, down : down + sizes[0], right : right + sizes[1]]
    results = forward_and_backward(layer, images, toward)
    for result, expected in zip(results, (y, dx, dweight, dbias), strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-4 if kind == "float32" else 1e-10)


def test_a_convolution_of_large_images_takes_bounded_memory() -> None:
    """The pixels under the kernel alone would take 466 MB, and their gradient as much."""

    def work() -> tuple[int, list[int]]:
        images = flow.zeros(16, 16, 224, 224)
        images.requires_grad = True
        layer = Conv2d(16, 16, 3, padding=1)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        layer(images).sum().backward()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, list(images.grad.shape)

    ((megabytes, shape),) = run_jobs([Job("a convolution", work)])
    assert shape == [16, 16, 224, 224]
    assert megabytes < 250


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from([1, 2, 3, 1000]),
)
def test_pooling_equals_oneflows_in_bits_whoever_of_equal_pixels_gets_the_gradient(
    shape: tuple[int, int, int, int], seed: int, levels: int
) -> None:
    random = np.random.default_rng(seed)
    images = random.integers(0, levels, shape).astype(np.float32)
    toward = random.normal(size=(*shape[:2], shape[2] // 2, shape[3] // 2)).astype(np.float32)
    results = []
    for pool in (max_pool2d, partial(flow.nn.functional.max_pool2d, kernel_size=2)):
        inputs = flow.tensor(images, requires_grad=True)
        output = pool(inputs)
        output.backward(flow.tensor(toward))
        results.append((output.numpy().copy(), inputs.grad.numpy().copy()))
    for result, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(result, expected)


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


def test_dropout_follows_the_seed() -> None:
    """One layer alone, and both of the teacher's."""
    images = flow.tensor(np.random.default_rng(0).normal(size=(8, 1, 28, 28)).astype(np.float32))
    for network in (Dropout(0.5), TeacherCnn((1, 28, 28), 10).train()):
        outputs = []
        for seed in (1, 1, 2):
            flow.manual_seed(seed)
            outputs.append(network(images).numpy().copy())
        assert np.array_equal(outputs[0], outputs[1])
        assert not np.array_equal(outputs[0], outputs[2])


def test_dropout_differs_between_layers_and_between_calls() -> None:
    flow.manual_seed(0)
    first, second = Dropout(0.5), Dropout(0.5)
    masks = [layer(flow.ones(64, 100)).numpy() == 0 for layer in (first, second, first, second)]
    for number, mask in enumerate(masks):
        for other in masks[:number]:
            assert 0.4 < (mask == other).mean() < 0.6, "two masks are correlated"


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
def test_dropout_drops_its_fraction_and_scales_the_rest(rate: float) -> None:
    flow.manual_seed(3)
    inputs = flow.ones(200, 500, requires_grad=True)
    output = Dropout(rate)(inputs)
    output.sum().backward()
    values = output.numpy()
    zeros = (values == 0).mean()
    deviation = np.sqrt(rate * (1 - rate) / values.size)
    assert abs(zeros - rate) < 5 * deviation
    np.testing.assert_allclose(values[values != 0], 1 / (1 - rate), rtol=1e-6)
    np.testing.assert_array_equal(inputs.grad.numpy(), values)  # the gradient passes where the value did


def test_dropout_of_everything_leaves_nothing() -> None:
    inputs = flow.ones(3, 4, requires_grad=True)
    output = Dropout(1.0)(inputs)
    output.sum().backward()
    assert not output.numpy().any()
    assert not inputs.grad.numpy().any()


def test_dropout_changes_nothing_where_it_should_not() -> None:
    inputs = flow.tensor(np.random.default_rng(0).normal(size=(7, 9)).astype(np.float32))
    for layer in (Dropout(0.5).eval(), Dropout(0.0)):
        assert np.array_equal(layer(inputs).numpy(), inputs.numpy())
    assert str(Dropout(0.3)) == "Dropout(p=0.3)"
