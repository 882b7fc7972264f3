"""flowvision's classifiers get a stem for the images and a head for the classes."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from kdtrain.errors import UsageError
from kdtrain.models.networks import ImageShape
from kdtrain.models.registry import build_model, check_architecture
from kdtrain.models.zoo import CLASSIFIERS
from kdtrain.nn.layers import Conv2d, Dropout
from kdtrain.runtime import flow

SMALL = ("shufflenet_v2_x0_5", "squeezenet1_1", "mobilenet_v3_small")  # the fastest; one with a dropout


def test_every_name_on_the_list_is_flowvisions() -> None:
    creator = importlib.import_module("flowvision.models").ModelCreator
    assert set(CLASSIFIERS) <= set(creator.model_list())
    assert len(set(CLASSIFIERS)) == len(CLASSIFIERS)


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("shape", "classes"), [((1, 28, 28), 10), ((3, 32, 32), 7), ((3, 64, 64), 2)])
def test_stem_and_head_fit(name: str, shape: ImageShape, classes: int) -> None:
    model = build_model(f"flowvision:{name}", shape, classes).eval()
    with flow.no_grad():
        assert tuple(model(flow.ones(2, *shape)).shape) == (2, classes)
    stem = next(layer for layer in model.modules() if isinstance(layer, flow.nn.Conv2d))
    assert stem.in_channels == shape[0]
    assert stem.stride == ((1, 1) if shape[1] < 64 else (2, 2))


def test_stem_of_a_large_network_keeps_the_size_of_small_images() -> None:
    small, large = (build_model("flowvision:resnet18", (3, side, side), 10) for side in (32, 64))
    assert (small.conv1.kernel_size, small.conv1.stride, small.conv1.padding) == ((3, 3), (1, 1), (1, 1))
    assert isinstance(small.maxpool, flow.nn.Identity)
    assert (large.conv1.kernel_size, large.conv1.stride, large.conv1.padding) == ((7, 7), (2, 2), (3, 3))
    assert isinstance(large.maxpool, flow.nn.MaxPool2d)


@pytest.mark.parametrize("name", SMALL)
def test_layers_are_replaced_so_that_weights_and_steps_follow_the_seed(name: str) -> None:
    images = flow.tensor(np.random.default_rng(0).normal(size=(4, 1, 28, 28)).astype(np.float32))
    answers = []
    for weights, masks in ((1, 2), (1, 2), (1, 3), (4, 2)):
        flow.manual_seed(weights)
        model = build_model(f"flowvision:{name}", (1, 28, 28), 10).train()
        flow.manual_seed(masks)
        answers.append(model(images).numpy().copy())
    kinds = {type(layer) for layer in model.modules()}
    assert Conv2d in kinds
    assert not kinds & {flow.nn.Conv2d, flow.nn.Dropout}, "they are slow or wrong in OneFlow"
    assert np.array_equal(answers[0], answers[1])
    assert np.array_equal(answers[0], answers[2]) != (Dropout in kinds)
    assert not np.array_equal(answers[0], answers[3])


@pytest.mark.parametrize(
    "name", ["resnet19", "resnest50", "fast_neural_style", "ModelCreator", "__loader__", "resnet18:x", ""]
)
def test_other_names_are_refused(name: str) -> None:
    hint = r" \(did you mean 'resnet1" if name == "resnet19" else ""
    for refuse in (check_architecture, lambda arch: build_model(arch, (1, 28, 28), 10)):
        with pytest.raises(UsageError, match=f"there is no flowvision classifier '{name}'{hint}"):
            refuse(f"flowvision:{name}")


def test_images_that_are_too_small_are_refused() -> None:
    with pytest.raises(UsageError, match=r"flowvision:resnet18 .*28x27"):
        build_model("flowvision:resnet18", (1, 28, 27), 10)
