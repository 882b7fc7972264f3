"""``student_cnn`` is small, computes an independent formula, learns in all layers, and can be exported."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdtrain.deploy.export.onnx_file import to_onnx
from kdtrain.deploy.export.quantization import quantize
from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.errors import UsageError
from kdtrain.models.networks import ImageShape
from kdtrain.models.own_layers import gains_by_cores
from kdtrain.models.registry import build_model, count_multiply_adds, count_parameters
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import Weights, load_weights, snapshot
from tests.models.convolution import Array, convolve

SHAPES: list[ImageShape] = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]


def trained_like(shape: ImageShape, classes: int = 10) -> flow.nn.Module:
    """Returns a network whose running statistics are no longer those of the start, in evaluation mode."""
    flow.manual_seed(0)
    model, rng = build_model("student_cnn", shape, classes), np.random.default_rng(0)
    weights: Weights = {
        name: array + rng.uniform(0, 0.3, array.shape).astype(np.float32)
        if array.dtype == np.float32 and array.ndim == 1
        else array
        for name, array in snapshot(model).items()
    }
    load_weights(model, weights, "the test")
    return model.eval()


def reference(weights: dict[str, Array], x: Array, pooled: tuple[str, ...]) -> Array:
    """Returns the expected logits in evaluation mode, in float64."""
    for block in ("block1", "block2", "block3", "block4"):
        x = convolve(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), weights[f"{block}.0.weight"])
        mean, var, scale, shift = (
            weights[f"{block}.1.{part}"][:, None, None]
            for part in ("running_mean", "running_var", "weight", "bias")
        )
        x = np.maximum((x - mean) / np.sqrt(var + 1e-5) * scale + shift, 0)
        if block in pooled:
            count, channels, height, width = x.shape
            whole = x[:, :, : height // 2 * 2, : width // 2 * 2]
            x = whole.reshape(count, channels, height // 2, 2, width // 2, 2).max(axis=(3, 5))
    logits: Array = x.mean(axis=(2, 3)) @ weights["fc.weight"].T + weights["fc.bias"]
    return logits


@pytest.mark.parametrize(
    ("shape", "pooled"),
    [
        ((1, 28, 28), ("block1", "block2")),
        ((3, 7, 13), ("block1", "block2")),
        ((3, 47, 64), ("block1", "block2")),
        ((3, 48, 64), ("block1", "block2", "block3")),
    ],
)
def test_answers_equal_an_independent_formula(shape: ImageShape, pooled: tuple[str, ...]) -> None:
    model = trained_like(shape, classes=3)
    images = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    weights = {name: array.astype(np.float64) for name, array in snapshot(model).items()}
    expected = reference(weights, images.astype(np.float64), pooled)
    answer = model(flow.tensor(images)).numpy()
    assert answer.shape == (2, 3)
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("shape", SHAPES)
def test_it_is_small_and_trained_on_all_cores(shape: ImageShape) -> None:
    model = build_model("student_cnn", shape, 10)
    assert count_parameters(model) <= 60_000
    assert gains_by_cores(model)
    teacher = count_multiply_adds(build_model("teacher_cnn", shape, 10), shape)
    assert count_multiply_adds(model, shape) < teacher / 3


def test_every_parameter_learns() -> None:
    flow.manual_seed(0)
    model = build_model("student_cnn", (1, 12, 12), 3)
    logits = model(flow.randn(8, 1, 12, 12))
    flow.nn.functional.cross_entropy(logits, flow.tensor(np.arange(8) % 3)).backward()
    assert all((parameter.grad.numpy() != 0).any() for parameter in model.parameters())


@pytest.mark.parametrize("shape", [(1, 3, 28), (1, 28, 3), (1, 1, 1)])
def test_images_that_poolings_would_leave_empty_are_refused(shape: ImageShape) -> None:
    with pytest.raises(UsageError, match=rf"at least 4x4.*{shape[1]}x{shape[2]}.*--student-arch"):
        build_model("student_cnn", shape, 10)
    assert build_model("student_cnn", (1, 4, 4), 3)(flow.ones(2, 1, 4, 4)).shape == (2, 3)


@pytest.mark.parametrize("shape", SHAPES)
def test_exported_files_return_the_same_logits(shape: ImageShape, tmp_path: Path) -> None:
    model, channels = trained_like(shape), shape[0]
    images = np.random.default_rng(1).integers(0, 256, (48, *shape), np.uint8)
    mean, std = (0.5,) * channels, (0.25,) * channels
    classes = tuple(map(str, range(10)))
    card = ModelCard("student", "student_cnn", "npz:x.npz", shape, classes, mean, std)
    path = tmp_path / "net.onnx"
    path.write_bytes(to_onnx(model, card))
    full = OnnxModel.load(path)
    expected = model(flow.tensor((images / 255 - 0.5) / 0.25).to(flow.float32)).numpy()
    span = np.ptp(expected)
    np.testing.assert_allclose(full.logits(images), expected, atol=1e-4 * span)
    path.write_bytes(quantize(full, images, tmp_path))
    assert np.abs(OnnxModel.load(path).logits(images) - expected).max() < 0.1 * span
