"""flowvision's networks compute the same with kdtrain's blocks and layers as with their own."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kdtrain.engine.recorder import Recorder
from kdtrain.models.networks import ImageShape
from kdtrain.models.zoo import build_classifier
from kdtrain.nn.operations import is_channels_last
from kdtrain.nn.own_layers import BLOCKS, with_own_layers
from kdtrain.runtime import flow

Array = npt.NDArray[np.float64]
NETWORKS = [
    ("mobilenet_v3_small", (3, 32, 32)),
    ("shufflenet_v2_x0_5", (3, 32, 32)),
    ("resnet18", (3, 64, 64)),
    ("resnet50", (3, 64, 64)),
]
CLASSES = 5


def networks(name: str, shape: ImageShape) -> tuple[flow.nn.Module, flow.nn.Module]:
    """A network with kdtrain's layers, and one with its own, of the same weights, without dropout."""
    flow.manual_seed(0)
    theirs = build_classifier(f"flowvision:{name}", shape, CLASSES)
    for layer in theirs.modules():
        if isinstance(layer, flow.nn.Dropout):
            layer.p = 0.0
        elif isinstance(layer, flow.nn.Hardswish):
            layer.inplace = False  # which warns, and does nothing else
    return with_own_layers(copy.deepcopy(theirs)), theirs


def images(shape: ImageShape, count: int) -> npt.NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(count, *shape)).astype(np.float32)


def gradients(model: flow.nn.Module, pixels: npt.NDArray[Any]) -> Array:
    """The gradients of all parameters, one after the other."""
    labels = flow.tensor(np.arange(len(pixels)) % CLASSES)
    flow.nn.functional.cross_entropy(model.train()(flow.tensor(pixels)), labels).backward()
    arrays = [parameter.grad.numpy().ravel() for parameter in model.parameters()]
    return np.concatenate(arrays, dtype=np.float64)


@pytest.mark.parametrize(("name", "shape"), NETWORKS)
def test_logits_and_gradients_are_those_of_flowvisions_own_layers(name: str, shape: ImageShape) -> None:
    """In float64. Where float32 changes the sign before a ReLU, gradients of deep networks differ by 3 %."""
    model, reference = networks(name, shape)
    reference = reference.to(flow.float64)
    assert list(model.state_dict()) == list(reference.state_dict())
    pixels = images(shape, 2)
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
    model, _ = networks(name, shape)
    layouts = []
    for layer in model.modules():
        if type(layer) in BLOCKS.values():
            layer.register_forward_hook(
                lambda layer, inputs, output: layouts.append(is_channels_last(output))
            )
    with flow.no_grad():
        model.eval()(flow.tensor(images(shape, 1)))
    assert len(layouts) > 7
    assert all(layouts)


@pytest.mark.parametrize(("name", "block"), [("resnet18", "layer1.0"), ("resnet50", "layer1.1")])
def test_the_relu_of_a_block_is_called_where_a_method_records_it(name: str, block: str) -> None:
    model, reference = networks(name, (3, 64, 64))
    pixels = flow.tensor(images((3, 64, 64), 1))
    features = list[npt.NDArray[np.float32]]()
    for network in (model, reference):
        recorder = Recorder(network, "student", pixels)
        assert recorder.record(f"{block}.relu") == recorder.record(block)
        with flow.no_grad():
            features.append(recorder(pixels).features[f"{block}.relu"].numpy())
    np.testing.assert_allclose(features[0], features[1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_another_activation_in_a_block_stays(name: str) -> None:
    model, reference = networks(name, (3, 64, 64))
    answers = list[npt.NDArray[np.float32]]()
    for network in (model, reference):
        for layer in network.modules():
            if hasattr(layer, "relu"):
                layer.relu = flow.nn.Tanh()
        with flow.no_grad():
            answers.append(network.eval()(flow.tensor(images((3, 64, 64), 1))).numpy())
    np.testing.assert_allclose(answers[0], answers[1], rtol=1e-4, atol=1e-4)
