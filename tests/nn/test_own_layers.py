"""Networks from elsewhere compute the same after their layers have been replaced."""

from __future__ import annotations

import copy
import importlib
import warnings
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kdtrain.engine.recorder import Recorder
from kdtrain.models.networks import ImageShape
from kdtrain.models.zoo import build_classifier
from kdtrain.nn import layers
from kdtrain.nn.layers import channels_last
from kdtrain.nn.operations import is_channels_last
from kdtrain.nn.own_layers import BLOCKS, gains_by_cores, with_own_layers
from kdtrain.runtime import flow

Array = npt.NDArray[np.float32]
ACTIVATIONS = (
    *("Identity", "ReLU", "ReLU6", "LeakyReLU", "ELU", "SiLU", "GELU", "Mish"),
    *("Sigmoid", "Tanh", "Hardsigmoid", "Hardswish"),
)


class Residual(flow.nn.Module):
    """A user's block, which adds in place and calls a function of OneFlow's."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = flow.nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        y = self.conv(x)
        y += x
        return flow.nn.functional.relu(y.transpose(2, 3)).transpose(2, 3)


class Stage(flow.nn.Sequential):
    """A user's sequence of layers."""


class Doubled(flow.nn.Sequential):
    """A user's sequence of layers that does something else."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        return 2 * super().forward(x)


class Network(flow.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = flow.nn.Sequential(
            flow.nn.Conv2d(3, 8, 3, bias=False),
            flow.nn.BatchNorm2d(8),
            flow.nn.ReLU(inplace=True),
            flow.nn.MaxPool2d(3, 2, 1),
        )
        self.stage = Stage(
            Residual(),
            Doubled(flow.nn.Conv2d(8, 8, 1), flow.nn.LeakyReLU(0.1)),
            flow.nn.Upsample(scale_factor=2),
        )
        self.depthwise = flow.nn.Conv2d(8, 16, 3, 2, groups=8)
        self.pool = flow.nn.AdaptiveAvgPool2d(3)
        self.fc = flow.nn.Linear(16 * 9, 4)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        x = self.pool(self.depthwise(self.stage(self.stem(x))))
        return self.fc(flow.flatten(x, 1))


def networks() -> tuple[flow.nn.Module, flow.nn.Module]:
    """A network with kdtrain's layers, and one with OneFlow's, of the same weights."""
    flow.manual_seed(0)
    reference = Network()
    return with_own_layers(copy.deepcopy(reference)), reference


def normal(*shape: int) -> Array:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize("training", [True, False])
def test_a_users_network_computes_the_same(training: bool) -> None:
    model, reference = networks()
    results = []
    for network in (model, reference):
        x = flow.tensor(normal(5, 3, 23, 19), requires_grad=True)
        logits = network.train(training)(x)
        flow.nn.functional.cross_entropy(logits, flow.tensor(np.arange(5) % 4)).backward()
        gradients = [parameter.grad for parameter in network.parameters()]
        results.append([tensor.numpy() for tensor in (logits, x.grad, *gradients)])
    assert list(model.state_dict()) == list(reference.state_dict())
    tensors = [list(network.state_dict().values()) for network in (model, reference)]
    results = [arrays + [t.numpy() for t in state] for arrays, state in zip(results, tensors, strict=True)]
    for result, expected in zip(*results, strict=True):
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-5 * max(1, np.abs(expected).max()))


def test_layers_are_still_of_the_classes_that_they_were() -> None:
    model, reference = networks()
    for layer, original in zip(model.modules(), reference.modules(), strict=True):
        assert isinstance(layer, type(original))
        assert type(layer).__name__ == type(original).__name__
    for kind in (layers.Conv2d, layers.BatchNorm2d, layers.MaxPool2d, layers.Linear, layers.Sequential):
        assert any(type(layer) is kind for layer in model.modules())
    assert type(model.stage[1]) is Doubled
    assert not model.stem[2].inplace
    assert with_own_layers(model) is model  # once more, which changes nothing
    assert str(model) == str(networks()[0])


def test_a_copy_of_a_network_computes_the_same() -> None:
    """Methods keep averages of weights in copies."""
    model, _ = networks()
    x = flow.tensor(normal(2, 3, 23, 19))
    np.testing.assert_array_equal(copy.deepcopy(model.eval())(x).numpy(), model(x).numpy())


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_oneflows_and_keep_the_layout(name: str) -> None:
    kind: Any = getattr(flow.nn, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer, reference = with_own_layers(kind()), kind()
    assert isinstance(layer, kind)
    toward = flow.tensor(normal(2, 3, 4, 5))
    results = []
    for call in (layer, lambda x: layer(channels_last(x)), reference):
        x = flow.tensor(4 * normal(2, 3, 4, 5), requires_grad=True)
        y = call(x)
        (y * toward).sum().backward()
        results.append([y.numpy(), x.grad.numpy()])
    for values in zip(*results, strict=True):
        for result in values[:2]:
            np.testing.assert_allclose(result, values[2], rtol=1e-6, atol=1e-6)
    assert is_channels_last(layer(channels_last(toward)))
    assert not is_channels_last(layer(toward))
    np.testing.assert_allclose(layer(toward[0, 0]).numpy(), reference(toward[0, 0]).numpy(), rtol=1e-6)


class Pair(flow.nn.Module):
    def forward(self, x: flow.Tensor) -> tuple[flow.Tensor, flow.Tensor]:
        return x, 2 * x


class Second(flow.nn.Module):
    def forward(self, pair: tuple[flow.Tensor, flow.Tensor]) -> flow.Tensor:
        return pair[1]


def test_layers_of_a_sequence_may_return_several_tensors() -> None:
    model = with_own_layers(
        flow.nn.Sequential(flow.nn.Conv2d(3, 4, 1), Pair(), Second(), flow.nn.Conv2d(4, 3, 1))
    )
    first, *_, last = model
    x = flow.tensor(normal(2, 3, 5, 5))
    np.testing.assert_allclose(model(x).numpy(), last(2 * first(x)).numpy(), rtol=1e-5, atol=1e-6)
    assert len(with_own_layers(flow.nn.Sequential(Pair()))(x)) == 2
    assert tuple(
        with_own_layers(flow.nn.Sequential(flow.nn.LSTM(5, 2), Pair()))(flow.ones(3, 4, 5))[0][0].shape
    ) == (
        3,
        4,
        2,
    )


class Watch(flow.nn.Module):
    """A user's layer, which notes the layout of its images."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        self.was_last = is_channels_last(x)
        return x


def test_users_layers_get_images_as_oneflow_lays_them_out_and_others_channels_last() -> None:
    model = with_own_layers(
        flow.nn.Sequential(flow.nn.Conv2d(3, 4, 3), flow.nn.Tanh(), Watch(), flow.nn.MaxPool2d(2))
    )
    seen = []
    model[1].register_forward_hook(lambda layer, inputs, output: seen.append(is_channels_last(output)))
    x = flow.tensor(normal(2, 3, 7, 8))
    assert not is_channels_last(model(x))
    assert is_channels_last(model(channels_last(x)))
    assert not model[2].was_last
    assert seen == [True, True]


def sequences() -> tuple[flow.nn.Module, flow.nn.Module]:
    """A sequence with kdtrain's layers, and one with OneFlow's, of the same weights."""
    reference = flow.nn.Sequential(flow.nn.Conv2d(3, 4, 3), flow.nn.BatchNorm2d(4), flow.nn.ReLU())
    return with_own_layers(copy.deepcopy(reference)), reference


@pytest.mark.parametrize("watched", [0, 1, 2])
def test_layers_of_a_sequence_before_a_relu_and_the_relu_show_their_results_to_hooks(watched: int) -> None:
    """Methods of distillation record them. Elsewhere both are computed at once."""
    (model, reference), x = sequences(), flow.tensor(normal(2, 3, 7, 8))
    seen: list[list[Array]] = [[], []]
    for network, results in zip((model, reference), seen, strict=True):
        hook = partial(lambda results, layer, inputs, output: results.append(output.numpy().copy()), results)
        network[watched].register_forward_hook(hook)
        results.append(network.train()(x).numpy())
    for result, expected in zip(*seen, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-5)
    assert len(seen[0]) == 2


@pytest.mark.parametrize("watched", [0, 1, 2])
def test_hooks_before_the_layers_of_a_sequence_are_called_and_may_change_the_argument(watched: int) -> None:
    (model, reference), x = sequences(), flow.tensor(normal(2, 3, 7, 8))
    results = []
    for network in (model, reference):
        network[watched].register_forward_pre_hook(lambda layer, inputs: (2 * inputs[0] - 1,))
        results.append(network.train()(x).numpy())
    np.testing.assert_allclose(results[0], results[1], rtol=1e-5, atol=1e-5)


def test_convolutions_and_large_linear_layers_gain_by_cores() -> None:
    assert gains_by_cores(with_own_layers(flow.nn.Sequential(flow.nn.Linear(512, 512))))
    assert gains_by_cores(with_own_layers(flow.nn.Conv2d(1, 1, 1)))
    assert not gains_by_cores(
        with_own_layers(flow.nn.Sequential(flow.nn.Linear(512, 511), flow.nn.BatchNorm1d(511)))
    )


# flowvision's blocks

NETWORKS = [
    *(("mobilenet_v3_small", (3, 32, 32)), ("shufflenet_v2_x0_5", (3, 32, 32)), ("resnet18", (3, 64, 64))),
    ("resnet50", (3, 64, 64)),
]
CLASSES = 5


def classifiers(name: str, shape: ImageShape) -> tuple[flow.nn.Module, flow.nn.Module]:
    """A network with kdtrain's layers, and one with its own, of the same weights, without dropout."""
    flow.manual_seed(0)
    theirs = build_classifier(f"flowvision:{name}", shape, CLASSES)
    for layer in theirs.modules():
        if isinstance(layer, flow.nn.Dropout):
            layer.p = 0.0
        elif isinstance(layer, flow.nn.Hardswish):
            layer.inplace = False  # which warns, and does nothing else
    return with_own_layers(copy.deepcopy(theirs)), theirs


def gradients(model: flow.nn.Module, pixels: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The gradients of all parameters, one after the other."""
    labels = flow.tensor(np.arange(len(pixels)) % CLASSES)
    flow.nn.functional.cross_entropy(model.train()(flow.tensor(pixels)), labels).backward()
    arrays = [parameter.grad.numpy().ravel() for parameter in model.parameters()]
    return np.concatenate(arrays, dtype=np.float64)


@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_logits_and_gradients_are_those_of_flowvisions_own_layers(name: str, shape: ImageShape) -> None:
    """In float64. Where float32 changes the sign before a ReLU, gradients of deep networks differ by 3 %."""
    model, reference = classifiers(name, shape)
    reference = reference.to(flow.float64)
    assert list(model.state_dict()) == list(reference.state_dict())
    pixels = normal(2, *shape)
    result, expected = gradients(model, pixels), gradients(reference, pixels.astype(np.float64))
    assert np.linalg.norm(result - expected) < 0.1 * np.linalg.norm(expected)
    for key, tensor in reference.state_dict().items():  # running statistics: those of the step
        np.testing.assert_allclose(model.state_dict()[key].numpy(), tensor.numpy(), rtol=1e-3, atol=1e-4)
    with flow.no_grad():
        logits = model.eval()(flow.tensor(pixels)).numpy()
        wanted = reference.eval()(flow.tensor(pixels.astype(np.float64))).numpy()
    np.testing.assert_allclose(logits, wanted, rtol=0, atol=1e-4 * np.abs(wanted).max())


@pytest.mark.parametrize("name", BLOCKS)
def test_every_block_stands_for_one_of_flowvisions(name: str) -> None:
    module, _, kind = name.rpartition(".")
    assert issubclass(getattr(importlib.import_module(module), kind), flow.nn.Module)


@pytest.mark.parametrize(("name", "shape"), NETWORKS[:3])
def test_images_stay_channels_last_from_block_to_block(name: str, shape: ImageShape) -> None:
    """Copies between them would take as long as their convolutions."""
    model, _ = classifiers(name, shape)
    layouts = []
    for layer in model.modules():
        if type(layer) in BLOCKS.values():
            layer.register_forward_hook(
                lambda layer, inputs, output: layouts.append(is_channels_last(output))
            )
    with flow.no_grad():
        model.eval()(flow.tensor(normal(1, *shape)))
    assert len(layouts) > 7
    assert all(layouts)


@pytest.mark.parametrize(("name", "block"), [("resnet18", "layer1.0"), ("resnet50", "layer1.1")])
def test_the_relu_of_a_block_is_called_where_a_method_records_it(name: str, block: str) -> None:
    model, reference = classifiers(name, (3, 64, 64))
    pixels = flow.tensor(normal(1, 3, 64, 64))
    features = list[Array]()
    for network in (model, reference):
        recorder = Recorder(network, "student", pixels)
        assert recorder.record(f"{block}.relu") == recorder.record(block)
        with flow.no_grad():
            features.append(recorder(pixels).features[f"{block}.relu"].numpy())
    np.testing.assert_allclose(features[0], features[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_another_activation_in_a_block_stays(name: str) -> None:
    model, reference = classifiers(name, (3, 64, 64))
    answers = list[Array]()
    for network in (model, reference):
        for layer in network.modules():
            if hasattr(layer, "relu"):
                layer.relu = flow.nn.Tanh()
        with flow.no_grad():
            answers.append(network.eval()(flow.tensor(normal(1, 3, 64, 64))).numpy())
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-4, atol=1e-4)
