"""kdtrain's layers compute what OneFlow's do, in both layouts, and dropout follows the seed."""

from __future__ import annotations

import resource
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from kdtrain.errors import UsageError
from kdtrain.models.networks import TeacherCnn
from kdtrain.nn import layers, operations
from kdtrain.nn.layers import Conv2d, Dropout, channels_last
from kdtrain.nn.operations import is_channels_last
from kdtrain.runtime import flow
from kdtrain.runtime.processes import Job, run_jobs

Array = npt.NDArray[np.float32]
F = flow.nn.functional
both_layouts = pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])

LAYERS: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("Conv2d", (4, 6, 3), {}, (5, 4, 11, 9)),
    ("Conv2d", (4, 6, 3), {"bias": False}, (5, 4, 11, 9)),
    ("Conv2d", (4, 6, 3), {"stride": 2, "padding": 1}, (5, 4, 11, 9)),
    ("Conv2d", (4, 6, 3), {"stride": (2, 1), "dilation": 2, "padding": (2, 1)}, (5, 4, 11, 9)),
    ("Conv2d", (4, 6, 3), {"groups": 2}, (5, 4, 11, 9)),
    ("Conv2d", (4, 8, 3), {"groups": 4, "padding": 1}, (5, 4, 11, 9)),
    ("Conv2d", (4, 6, 1), {}, (5, 4, 11, 9)),
    ("Conv2d", (1, 6, (3, 2)), {}, (1, 1, 5, 4)),
    ("Conv2d", (4, 6, 1), {}, (5, 4, 1, 1)),
    ("Conv2d", (1, 1, 1), {}, (1, 1, 1, 1)),
    ("Conv2d", (4, 6, (3, 5)), {"padding": "same"}, (5, 4, 7, 7)),
    ("MaxPool2d", (2,), {}, (3, 4, 7, 6)),
    ("MaxPool2d", (3, 2, 1), {}, (3, 4, 7, 6)),
    ("MaxPool2d", ((3, 2),), {"stride": 1, "dilation": 2}, (3, 1, 7, 6)),
    ("AvgPool2d", (2,), {}, (3, 4, 7, 6)),
    ("AvgPool2d", (3, 2, 1), {}, (3, 4, 7, 6)),
    ("AvgPool2d", (3, (1, 2), 1), {"count_include_pad": False}, (3, 1, 7, 6)),
    ("AdaptiveAvgPool2d", (1,), {}, (3, 4, 7, 6)),
    ("AdaptiveAvgPool2d", ((None, 3),), {}, (3, 4, 7, 6)),
    ("AdaptiveAvgPool2d", (1,), {}, (3, 4, 1, 1)),
    ("BatchNorm2d", (4,), {}, (3, 4, 7, 6)),
    ("BatchNorm2d", (1,), {}, (2, 1, 1, 1)),
    ("BatchNorm2d", (4,), {"momentum": 0.3, "eps": 1e-2}, (3, 4, 7, 6)),
    ("ReLU", (), {}, (3, 4, 7, 6)),
    ("ReLU", (), {}, (16, 16, 16, 17)),
    ("Hardswish", (), {}, (3, 4, 7, 6)),
    ("Hardswish", (), {}, (3, 4)),
]
LEFT_TO_ONEFLOW: list[tuple[str, tuple[Any, ...], dict[str, Any], tuple[int, ...]]] = [
    ("MaxPool2d", (2,), {"ceil_mode": True}, (3, 4, 7, 6)),
    ("AvgPool2d", (3, 2, 1), {"ceil_mode": True}, (3, 4, 7, 6)),
    ("AvgPool2d", (2,), {"divisor_override": 3}, (3, 4, 7, 6)),
    ("AdaptiveAvgPool2d", (2,), {}, (3, 4, 7, 6)),
    ("BatchNorm2d", (4,), {"affine": False}, (3, 4, 7, 6)),
    ("BatchNorm2d", (4,), {"track_running_stats": False}, (3, 4, 7, 6)),
]


def results_of(
    layer: Callable[[flow.Tensor], flow.Tensor],
    images: Array,
    *,
    last: bool = False,
    images_learn: bool = True,
    toward: Array | None = None,
) -> list[Array]:
    """The output, and the gradients of sum(output * toward): of parameters, and of images that learn."""
    inputs = flow.tensor(images, requires_grad=images_learn)
    output = layer(channels_last(inputs) if last else inputs)
    if toward is None:
        toward = np.random.default_rng(1).normal(size=tuple(output.shape)).astype(images.dtype)
    (output * flow.tensor(toward)).sum().backward()
    assert (inputs.grad is not None) == images_learn
    parameters = list(layer.parameters()) if isinstance(layer, flow.nn.Module) else []
    gradients = [tensor.grad for tensor in ([inputs] if images_learn else []) + parameters]
    return [tensor.numpy().copy() for tensor in (output, *gradients)]


def assert_equal(results: list[Array], references: list[Array]) -> None:
    """Compares each array to 1e-5 of its largest number, or of 1."""
    for result, expected in zip(results, references, strict=True):
        assert (result.shape, result.dtype) == (expected.shape, expected.dtype)
        tolerance = 1e-5 * max(1.0, float(np.abs(expected).max(initial=0.0)))
        np.testing.assert_allclose(result, expected, rtol=0, atol=tolerance)


def normal(*shape: int, seed: int = 0) -> Array:
    return 2 * np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def pair_of(name: str, *arguments: Any, **options: Any) -> tuple[Any, Any]:
    """kdtrain's layer and OneFlow's, with the same parameters."""
    reference = getattr(flow.nn, name)(*arguments, **options)
    layer = getattr(layers, name)(*arguments, **options)
    for parameter in reference.parameters():
        flow.nn.init.normal_(parameter, mean=0.5)
    layer.load_state_dict(reference.state_dict())
    return layer, reference


@both_layouts
@pytest.mark.parametrize(("name", "arguments", "options", "shape"), LAYERS + LEFT_TO_ONEFLOW)
def test_a_layer_equals_oneflows(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any], shape: tuple[int, ...], last: bool
) -> None:
    layer, reference = pair_of(name, *arguments, **options)
    assert isinstance(layer, type(reference))
    assert list(dict(layer.named_parameters())) == list(dict(reference.named_parameters()))
    for training in (True, False):
        for module in (layer, reference):
            module.train(training)
        for step in range(2):
            images, learn = normal(*shape, seed=step), step == 0 or name != "Conv2d"
            if not learn and not list(layer.parameters()):
                continue
            results = results_of(layer, images, last=last and len(shape) == 4, images_learn=learn)
            assert_equal(results, results_of(reference, images, images_learn=learn))
    before, after = reference.state_dict(), layer.state_dict()  # running statistics, and their number
    assert before.keys() == after.keys()
    assert_equal([after[key].numpy() for key in before], [tensor.numpy() for tensor in before.values()])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(5, 64), (600, 256), (2, 300, 256)])
def test_linear_layers_equal_oneflows_small_and_large(shape: tuple[int, ...], bias: bool) -> None:
    layer, reference = pair_of("Linear", shape[-1], 256, bias=bias)
    for learn in (True, False):
        references = results_of(reference, normal(*shape), images_learn=learn)
        assert_equal(results_of(layer, normal(*shape), images_learn=learn), references)


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(2, 9), st.integers(2, 9)),
    window=st.sampled_from([(2, 2, 0), (3, 2, 1), (3, 1, 1), (2, 1, 0)]),
    levels=st.sampled_from([1, 2, 3, 1000]),
    last=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_max_pooling_equals_oneflows_in_bits_whichever_of_equal_pixels_gets_the_gradient(
    shape: tuple[int, ...], window: tuple[int, int, int], levels: int, last: bool, seed: int
) -> None:
    assume(min(shape[2:]) + 2 * window[2] >= window[0])
    images = np.random.default_rng(seed).integers(0, levels, shape).astype(np.float32)
    size = [(length + 2 * window[2] - window[0]) // window[1] + 1 for length in shape[2:]]
    # sums of small whole numbers are exact in any order
    toward = np.random.default_rng(seed).integers(-9, 9, (*shape[:2], *size)).astype(np.float32)
    layer, reference = pair_of("MaxPool2d", *window)
    references = results_of(reference, images, toward=toward)
    for result, expected in zip(results_of(layer, images, last=last, toward=toward), references, strict=True):
        np.testing.assert_array_equal(result, expected)
    if window == (2, 2, 0):
        for result, expected in zip(
            results_of(layers.max_pool2d, images, last=last, toward=toward), references, strict=True
        ):
            np.testing.assert_array_equal(result, expected)


def test_indices_of_max_pooling_are_oneflows() -> None:
    layer, reference = pair_of("MaxPool2d", 2, return_indices=True)
    images = flow.tensor(normal(2, 3, 6, 6))
    for result, expected in zip(layer(channels_last(images)), reference(images), strict=True):
        np.testing.assert_array_equal(result.numpy(), expected.numpy())


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *(("Conv2d", (4, 6, 3)), ("MaxPool2d", (2,)), ("AvgPool2d", (2,)), ("AdaptiveAvgPool2d", (1,))),
        *(("BatchNorm2d", (4,)), ("ReLU", ()), ("Hardswish", ()), ("Linear", (400, 256))),
    ],
)
def test_float64_and_empty_batches_are_left_to_oneflow(name: str, arguments: tuple[Any, ...]) -> None:
    """Also images that lie in memory channels last, as a user's data may."""
    layer, reference = pair_of(name, *arguments)
    shape = (400, 400) if name == "Linear" else (3, 4, 8, 7)
    empty = flow.zeros(0, *shape[1:])
    with flow.no_grad():
        assert layer.eval()(empty).shape == reference.eval()(empty).shape
    layer, reference = layer.to(flow.float64), reference.to(flow.float64)
    images = normal(*shape).astype(np.float64)
    given = flow.tensor(images)
    if len(shape) == 4:
        given = flow.tensor(images.transpose(0, 2, 3, 1).copy()).permute(0, 3, 1, 2)
    result, expected = layer(given), reference(flow.tensor(images))
    assert result.dtype == flow.float64
    np.testing.assert_array_equal(result.numpy(), expected.numpy())


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("Conv2d", (3, 4, 3), (2, 5, 8, 8)),
        ("BatchNorm2d", (3,), (2, 5, 8, 8)),
        ("Linear", (600, 500), (300, 700)),
    ],
)
def test_images_that_do_not_fit_the_layer_are_refused_as_by_oneflow(
    name: str, arguments: tuple[Any, ...], shape: tuple[int, ...]
) -> None:
    messages = []
    for layer in pair_of(name, *arguments):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            layer(flow.ones(*shape))
        messages.append(str(caught.value).splitlines()[0])
    assert messages[0] == messages[1]


@both_layouts
def test_a_channel_of_one_value_is_refused_in_training(last: bool) -> None:
    layer = layers.BatchNorm2d(3)
    with pytest.raises(UsageError, match="a batch of one image cannot be trained on"):
        layer(flow.ones(1, 3, 1, 1))
    assert layer.eval()(flow.ones(1, 3, 1, 1)).numpy().any()


@pytest.mark.parametrize(
    ("name", "arguments", "options", "shape"), [row for row in LAYERS if len(row[3]) == 4 and row[3][1] > 1]
)
def test_the_layout_of_a_result_is_that_of_the_argument(
    name: str, arguments: tuple[Any, ...], options: dict[str, Any], shape: tuple[int, ...]
) -> None:
    """A copy in each layer would take as long as what it computes."""
    layer, _ = pair_of(name, *arguments, **options)
    for images in (flow.tensor(normal(*shape)), channels_last(flow.tensor(normal(*shape)))):
        result = layer(images)
        one_pixel = result.shape[2] * result.shape[3] == 1
        assert one_pixel or is_channels_last(result) == is_channels_last(images)


class Rectified(flow.nn.Module):
    """A layer with a ReLU."""

    def __init__(self, layer: flow.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        return layers.relu_of(self.layer, x)


@both_layouts
@pytest.mark.parametrize("hooked", [False, True])
@pytest.mark.parametrize(
    ("name", "arguments"), [("Conv2d", (4, 6, 3)), ("BatchNorm2d", (4,)), ("AvgPool2d", (2,))]
)
def test_relu_of_equals_both_layers_and_a_hook_sees_the_first(
    name: str, arguments: tuple[Any, ...], hooked: bool, last: bool
) -> None:
    images, seen = normal(3, 4, 7, 6), []
    layer, reference = pair_of(name, *arguments)
    if hooked:
        layer.register_forward_hook(lambda layer, inputs, output: seen.append(output.numpy().copy()))
    for training in (True, False):
        for module in (layer, reference):
            module.train(training)
        references = results_of(flow.nn.Sequential(reference, flow.nn.ReLU()), images)
        assert_equal(results_of(Rectified(layer), images, last=last), references)
    assert len(seen) == 2 * hooked
    for output in seen[1:]:  # that in evaluation mode, which changes no running statistics
        assert_equal([output], [reference(flow.tensor(images)).numpy()])
        assert (output < 0).any()


@pytest.mark.parametrize("cores", [1, 2])
def test_a_convolution_of_large_images_takes_bounded_memory(cores: int) -> None:
    """The pixels under the kernel alone would take 466 MB, and their gradient as much."""

    def work() -> tuple[int, list[int]]:
        images = flow.zeros(16, 16, 224, 224)
        images.requires_grad = True
        layer = Conv2d(16, 16, 3, padding=1)
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        layer(images).sum().backward()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10, list(images.grad.shape)

    ((megabytes, shape),) = run_jobs([Job("a convolution", work, cores)])
    assert shape == [16, 16, 224, 224]
    assert megabytes < 250


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


ROWS = [
    ("between", [7, 5, 4, 3], [True, True, False]),
    ("at the end", [7, 3], [True]),
    ("two without", [7, 5, 3], [False, True]),
]


@pytest.mark.parametrize(("_", "widths", "relus"), ROWS, ids=[row[0] for row in ROWS])
@pytest.mark.parametrize("rows_learn", [True, False])
def test_linear_layers_in_a_row_are_those_of_oneflow_in_float64(
    _: str, widths: list[int], relus: list[bool], rows_learn: bool
) -> None:
    flow.manual_seed(0)
    own = [layers.Linear(*pair) for pair in pairwise(widths)]
    rows = np.random.default_rng(0).normal(size=(6, widths[0])).astype(np.float32)

    def run(linears: list[Any], kind: Any, function: Any) -> list[Array]:
        x = flow.tensor(rows.astype(kind), requires_grad=rows_learn)
        y = function(x, linears)
        (y * y).sum().backward()
        learned = [p.grad.numpy() for linear in linears for p in (linear.weight, linear.bias)]
        return [y.detach().numpy(), *learned, *([x.grad.numpy()] if rows_learn else [])]

    def by_oneflow(x: flow.Tensor, linears: list[Any]) -> flow.Tensor:
        for linear, has_relu in zip(linears, relus, strict=True):
            x = F.relu(linear(x)) if has_relu else linear(x)
        return x

    double = [flow.nn.Linear(*pair).double() for pair in pairwise(widths)]
    for linear, copied in zip(own, double, strict=True):
        copied.load_state_dict({name: value.double() for name, value in linear.state_dict().items()})
    found = run(own, np.float32, lambda x, linears: layers.linear_layers(x, linears, relus))
    for array, expected in zip(found, run(double, np.float64, by_oneflow), strict=True):
        np.testing.assert_allclose(array, expected, rtol=1e-4, atol=1e-6)


def test_a_hook_on_one_of_them_sees_its_result() -> None:
    flow.manual_seed(0)
    linears, seen = [layers.Linear(7, 5), layers.Linear(5, 3)], []
    x = flow.tensor(np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32))
    together = layers.linear_layers(x, linears, [True, False]).numpy()
    linears[0].register_forward_hook(lambda layer, given, result: seen.append(result.numpy()))
    np.testing.assert_allclose(layers.linear_layers(x, linears, [True, False]).numpy(), together, atol=1e-6)
    np.testing.assert_allclose(seen[0], F.linear(x, linears[0].weight, linears[0].bias).numpy(), atol=1e-6)


def test_a_sequence_runs_its_linear_layers_together() -> None:
    flow.manual_seed(0)
    parts: list[Any] = [
        layers.Linear(7, 5),
        layers.ReLU(),
        layers.Linear(5, 5),
        layers.Linear(5, 4),
        layers.ReLU(),
    ]
    network = layers.Sequential(*parts)
    nodes: list[operations.Node] = []
    x = flow.tensor(np.random.default_rng(0).normal(size=(6, 7)).astype(np.float32))
    expected = x
    for part in parts:
        expected = part(expected)
    operations.Node.observer = nodes.append
    try:
        y = network(x)
    finally:
        operations.Node.observer = None
    assert [type(node).__name__ for node in nodes] == ["LinearLayers"]
    np.testing.assert_allclose(y.numpy(), expected.numpy(), atol=1e-6)
    y[0] = 0.0  # the gradient does not need it
    y.sum().backward()


def test_weights_that_are_no_numbers_reach_the_result() -> None:
    linears = [layers.Linear(7, 5), layers.Linear(5, 3)]
    linears[0].weight.data.fill_(float("nan"))
    y = layers.linear_layers(flow.ones(6, 7, requires_grad=True), linears, [True, False])
    y.sum().backward()
    assert np.isnan(y.detach().numpy()).all()
