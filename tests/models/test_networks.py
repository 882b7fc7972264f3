"""Networks have the parameters of OneFlow's sample or are small, and compute an independent formula."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest

from kdtrain.data.dataset import Dataset
from kdtrain.deploy.export.onnx_file import to_onnx
from kdtrain.deploy.export.quantization import quantize
from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.errors import UsageError
from kdtrain.models.networks import ImageShape
from kdtrain.models.registry import build_model, count_multiply_adds, count_parameters
from kdtrain.nn.layers import Dropout
from kdtrain.nn.own_layers import gains_by_cores
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import Weights, load_weights, snapshot
from tests.nn.definitions import Array, convolve


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
    **{"teacher_cnn": 1_199_882, "student_mlp": 109_386, "hinton_1200": 2_395_210, "hinton_800": 1_276_810},
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
        *(("teacher_cnn", [0.3, 0.5]), ("hinton_1200", [0.2, 0.5, 0.5]), ("hinton_800", [0, 0, 0])),
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


# student_cnn

CNN_SHAPES: list[ImageShape] = [(1, 28, 28), (3, 32, 32), (3, 64, 64)]


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


def student_cnn_logits(weights: dict[str, Array], x: Array, pooled: tuple[str, ...]) -> Array:
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
        *(((1, 28, 28), ("block1", "block2")), ((3, 7, 13), ("block1", "block2"))),
        *(((3, 47, 64), ("block1", "block2")), ((3, 48, 64), ("block1", "block2", "block3"))),
    ],
)
def test_logits_of_student_cnn_equal_independent_formula(shape: ImageShape, pooled: tuple[str, ...]) -> None:
    model = trained_like(shape, classes=3)
    images = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    weights = {name: array.astype(np.float64) for name, array in snapshot(model).items()}
    expected = student_cnn_logits(weights, images.astype(np.float64), pooled)
    answer = model(flow.tensor(images)).numpy()
    assert answer.shape == (2, 3)
    np.testing.assert_allclose(answer, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("shape", CNN_SHAPES)
def test_student_cnn_is_small_and_trained_on_all_cores(shape: ImageShape) -> None:
    model = build_model("student_cnn", shape, 10)
    assert count_parameters(model) <= 60_000
    assert gains_by_cores(model)
    teacher = count_multiply_adds(build_model("teacher_cnn", shape, 10), shape)
    assert count_multiply_adds(model, shape) < teacher / 3


@pytest.mark.parametrize("shape", [(1, 3, 28), (1, 28, 3), (1, 1, 1)])
def test_images_that_poolings_would_leave_empty_are_refused(shape: ImageShape) -> None:
    with pytest.raises(UsageError, match=rf"at least 4x4.*{shape[1]}x{shape[2]}.*--student-arch"):
        build_model("student_cnn", shape, 10)
    assert build_model("student_cnn", (1, 4, 4), 3)(flow.ones(2, 1, 4, 4)).shape == (2, 3)


@pytest.mark.parametrize("shape", CNN_SHAPES)
def test_exported_files_of_student_cnn_return_the_same_logits(shape: ImageShape, tmp_path: Path) -> None:
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
