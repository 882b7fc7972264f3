"""Networks have the parameters of OneFlow's sample, and compute an independent formula."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from kdtrain.data.dataset import Dataset
from kdtrain.models.registry import build_model, count_parameters
from kdtrain.nn.layers import Dropout
from kdtrain.runtime import flow
from kdtrain.store.checkpoint import snapshot
from tests.nn.convolution import Array, convolve


def linear_layers(*sizes: int) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of the parameters of fc1, fc2 and so on."""
    shapes: dict[str, tuple[int, ...]] = {}
    for number, (inputs, outputs) in enumerate(itertools.pairwise(sizes), 1):
        shapes |= {f"fc{number}.weight": (outputs, inputs), f"fc{number}.bias": (outputs,)}
    return shapes


SHAPES = {
    "teacher_cnn": {
        "conv1.weight": (32, 1, 3, 3),
        "conv1.bias": (32,),
        "conv2.weight": (64, 32, 3, 3),
        "conv2.bias": (64,),
        **linear_layers(9216, 128, 10),
    },
    "student_mlp": linear_layers(784, 128, 64, 10),
    "hinton_1200": linear_layers(784, 1200, 1200, 10),
    "hinton_800": linear_layers(784, 800, 800, 10),
}
PARAMETERS = {
    "teacher_cnn": 1_199_882,
    "student_mlp": 109_386,
    "hinton_1200": 2_395_210,
    "hinton_800": 1_276_810,
}


def relu(x: Array) -> Array:
    return np.maximum(x, 0.0)


def reference(arch: str, weights: dict[str, Array], images: Array) -> Array:
    """Returns the expected logits, in float64."""

    def linear(name: str, x: Array) -> Array:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    if arch != "teacher_cnn":
        flat = images.reshape(len(images), -1)
        return linear("fc3", relu(linear("fc2", relu(linear("fc1", flat)))))
    x = images
    for name in ("conv1", "conv2"):
        x = relu(convolve(x, weights[f"{name}.weight"]) + weights[f"{name}.bias"][:, None, None])
    n, c, h, w = x.shape
    pooled = x[:, :, : h // 2 * 2, : w // 2 * 2].reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))
    return linear("fc2", relu(linear("fc1", pooled.reshape(n, -1))))


@pytest.mark.parametrize("arch", list(SHAPES))
def test_parameters_have_the_samples_names_and_shapes(arch: str) -> None:
    model = build_model(arch, (1, 28, 28), 10)
    assert {name: array.shape for name, array in snapshot(model).items()} == SHAPES[arch]
    assert count_parameters(model) == PARAMETERS[arch]


@pytest.mark.parametrize("arch", list(SHAPES))
@pytest.mark.parametrize(
    ("shape", "classes"), [((1, 28, 28), 10), ((1, 6, 6), 2), ((1, 7, 12), 3), ((3, 32, 32), 100)]
)
def test_answers_equal_an_independent_formula(arch: str, shape: tuple[int, int, int], classes: int) -> None:
    flow.manual_seed(5)
    model = build_model(arch, shape, classes).eval()
    images = np.random.default_rng(0).normal(size=(3, *shape)).astype(np.float32)
    answer = model(flow.tensor(images))
    assert tuple(answer.shape) == (3, classes)
    weights = {name: array.astype(np.float64) for name, array in snapshot(model).items()}
    expected = reference(arch, weights, images.astype(np.float64))
    np.testing.assert_allclose(answer.numpy(), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("arch", list(SHAPES))
def test_logits_may_be_negative_and_every_class_learns(arch: str, mnist: Dataset) -> None:
    flow.manual_seed(0)
    model = build_model(arch, mnist.image_shape, 10)
    logits = model(flow.tensor(mnist.normalization.apply(mnist.train.images[:64])))
    assert 0.2 < (logits.numpy() < 0).mean() < 0.8
    flow.nn.functional.cross_entropy(logits, flow.tensor(mnist.train.labels[:64])).backward()
    last = list(model.parameters())[-1]
    assert (last.grad.numpy() != 0).all(), "a class without a gradient stays as it is"


@pytest.mark.parametrize(
    ("arch", "rates"),
    [
        ("teacher_cnn", [0.3, 0.5]),
        ("hinton_1200", [0.2, 0.5, 0.5]),
        ("hinton_800", [0, 0, 0]),
        ("student_mlp", []),
    ],
)
def test_each_dropout_acts_in_training_only(arch: str, rates: list[float]) -> None:
    images = flow.ones(2, 1, 28, 28)
    model = build_model(arch, (1, 28, 28), 10)
    dropouts = [layer for layer in model.modules() if isinstance(layer, Dropout)]
    assert [layer.p for layer in dropouts] == rates
    evaluation = model.eval()(images).numpy().copy()
    model.train()
    for chosen, rate in enumerate(rates):
        for number, layer in enumerate(dropouts):
            layer.p = rate if number == chosen else 0.0
        assert np.array_equal(model(images).numpy(), evaluation) == (rate == 0)
    assert np.array_equal(model.eval()(images).numpy(), evaluation)
