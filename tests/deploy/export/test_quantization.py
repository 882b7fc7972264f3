"""A network in 8-bit integers: accuracy, size, calibration images and metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from kdtrain import OnnxModel, build_model, flow, model_card
from kdtrain.data.dataset import Dataset
from kdtrain.deploy.export.onnx_file import to_onnx
from kdtrain.deploy.export.quantization import draw, quantize
from tests.deploy.export.conftest import Exported


def test_accuracy_and_predictions_are_kept(exported: Exported, mnist: Dataset) -> None:
    full = exported.full.logits(mnist.test.images).argmax(axis=1)
    int8 = exported.int8.logits(mnist.test.images).argmax(axis=1)
    accuracy = (full == mnist.test.labels).mean()
    assert accuracy > 0.8, "the student is trained"
    assert abs(accuracy - (int8 == mnist.test.labels).mean()) < 0.005
    assert (full == int8).mean() > 0.98


def test_weights_are_bytes_and_the_file_is_a_quarter(exported: Exported) -> None:
    assert exported.int8.path.stat().st_size < 0.3 * exported.full.path.stat().st_size
    tensors = {tensor.name: tensor for tensor in onnx.load(exported.int8.path).graph.initializer}
    for layer, units in (("fc1", 128), ("fc2", 64), ("fc3", 10)):
        weights = onnx.numpy_helper.to_array(tensors[f"{layer}.weight_quantized"])
        assert weights.dtype == np.int8
        assert np.abs(weights.astype(int)).max() <= 64, "7 bits: no sum of two products leaves 16"
        assert tensors[f"{layer}.weight_scale"].dims == [units], "a scale for each unit"


def test_logits_are_not_rounded(exported: Exported, mnist: Dataset) -> None:
    logits = exported.int8.logits(mnist.test.images[:500])
    assert len(np.unique(logits)) > 4000, "8 bits would give 256 values"


def test_metadata_hold_precision_and_calibration(exported: Exported) -> None:
    about = exported.int8.about
    assert (about["precision"], about["calibration_images"], about["calibration_seed"]) == ("int8", 128, 0)
    assert about["checkpoint_sha256"] == exported.full.about["checkpoint_sha256"]
    assert exported.int8.card == exported.full.card


def test_same_images_give_the_same_bytes(exported: Exported, mnist: Dataset, tmp_path: Path) -> None:
    images = mnist.train.images[draw(128, len(mnist.train), seed=0)]
    again = quantize(exported.full, images, tmp_path, calibration_images=128, calibration_seed=0)
    assert again == exported.int8.path.read_bytes()


def test_images_are_drawn_by_seed_without_repetition() -> None:
    first = draw(100, 1000, seed=1)
    assert len(np.unique(first)) == 100
    assert first.min() >= 0
    assert first.max() < 1000
    np.testing.assert_array_equal(first, draw(100, 1000, seed=1))
    assert not np.array_equal(first, draw(100, 1000, seed=2))
    np.testing.assert_array_equal(draw(100, 60, seed=1), np.arange(60))


@pytest.mark.parametrize("arch", ["resnet8", "teacher_cnn"])
def test_logits_of_convolutions_are_close(arch: str, mnist: Dataset, tmp_path: Path) -> None:
    flow.manual_seed(0)
    path = tmp_path / "net.onnx"
    network = build_model(arch, mnist.image_shape, mnist.num_classes).eval()
    path.write_bytes(to_onnx(network, model_card("teacher", arch, mnist)))
    full, images = OnnxModel.load(path), mnist.train.images[:64]
    path.write_bytes(quantize(full, images, tmp_path))
    difference = OnnxModel.load(path).logits(images) - full.logits(images)
    assert 0 < np.abs(difference).max() < 0.1 * np.ptp(full.logits(images))
