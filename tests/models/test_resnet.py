"""The residual networks have the paper's size, and compute an independent formula."""

from __future__ import annotations

import numpy as np
import pytest

from kdtrain.models.networks import ImageShape
from kdtrain.models.registry import build_model, count_parameters
from kdtrain.nn.layers import Conv2d
from kdtrain.runtime import flow
from kdtrain.store.checkpoint import Weights, load_weights, snapshot
from tests.nn.definitions import Array, convolve


def convolve_padded(x: Array, weight: Array, stride: int) -> Array:
    """A 3x3 convolution with one pixel of padding."""
    return convolve(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), weight)[:, :, ::stride, ::stride]


def reference(weights: dict[str, Array], x: Array) -> Array:
    """Returns the expected logits in evaluation mode, in float64."""

    def normalize(name: str, x: Array) -> Array:
        mean, var, scale, shift = (
            weights[f"{name}.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        result: Array = (x - mean) / np.sqrt(var + 1e-5) * scale + shift
        return result

    x = np.maximum(normalize("bn1", convolve_padded(x, weights["conv1.weight"], 1)), 0)
    for stage in ("stage1", "stage2", "stage3"):
        for block in range(sum(name.startswith(stage) and "conv1" in name for name in weights)):
            name = f"{stage}.{block}"
            stride = 2 if stage != "stage1" and block == 0 else 1
            y = np.maximum(
                normalize(f"{name}.bn1", convolve_padded(x, weights[f"{name}.conv1.weight"], stride)), 0
            )
            y = normalize(f"{name}.bn2", convolve_padded(y, weights[f"{name}.conv2.weight"], 1))
            shortcut = np.zeros_like(y)
            shortcut[:, : x.shape[1]] = x[:, :, ::stride, ::stride]
            x = np.maximum(y + shortcut, 0)
    logits: Array = x.mean(axis=(2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    return logits


def random_weights(model: flow.nn.Module) -> Weights:
    """Returns weights and running statistics like those of a trained network."""
    rng = np.random.default_rng(0)
    return {
        name: array * rng.uniform(0.5, 1.5, array.shape).astype(np.float32)
        + (rng.uniform(0, 0.3, array.shape).astype(np.float32) if "bn" in name else np.float32(0))
        if array.dtype == np.float32
        else array
        for name, array in snapshot(model).items()
    }


@pytest.mark.parametrize(
    ("arch", "shape", "classes"),
    [("resnet20", (3, 32, 32), 10), ("resnet8", (1, 28, 28), 10), ("resnet8", (2, 7, 13), 3)],
)
def test_answers_equal_an_independent_formula(arch: str, shape: ImageShape, classes: int) -> None:
    flow.manual_seed(0)
    model = build_model(arch, shape, classes).eval()
    load_weights(model, random_weights(model), "the test")
    images = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    expected = reference(
        {name: array.astype(np.float64) for name, array in snapshot(model).items()}, images.astype(np.float64)
    )
    answer = model(flow.tensor(images)).numpy()
    assert answer.shape == (2, classes)
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_size_is_the_papers() -> None:
    model = build_model("resnet20", (3, 32, 32), 10)
    assert count_parameters(model) == 269_722  # "0.27M" in table 6
    layers = [m for m in model.modules() if isinstance(m, (flow.nn.Conv2d, flow.nn.Linear))]
    assert len(layers) == 20
    assert all(isinstance(layer, Conv2d) for layer in layers[:-1])
