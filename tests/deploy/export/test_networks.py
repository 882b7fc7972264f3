"""The export of whole networks: kdtrain's own, some of flowvision's, and a user's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdtrain import OnnxModel, build_model, flow
from kdtrain.data.dataset import Normalization
from kdtrain.deploy.export.onnx_file import to_onnx
from kdtrain.models.networks import ImageShape
from kdtrain.models.registry import ARCHITECTURES
from kdtrain.store.card import ModelCard

FACTORY = """
import oneflow.nn as nn

class Subclass(nn.Linear):
    def forward(self, x):
        return super().forward(x)

def tiny(image_shape, num_classes):
    channels, _, _ = image_shape
    return nn.Sequential(
        nn.Conv2d(channels, 6, 3), nn.BatchNorm2d(6), nn.GELU(), nn.Dropout(0.3), nn.AdaptiveAvgPool2d(4),
        nn.Flatten(), nn.LayerNorm(96), Subclass(96, num_classes),
    )
"""


def assert_same(arch: str, shape: ImageShape, path: Path) -> None:
    flow.manual_seed(0)
    network = build_model(arch, shape, 10).eval()
    random = np.random.default_rng(0)
    for name, buffer in network.named_buffers():
        if "running" in name:  # statistics that are not 0 and 1
            buffer.copy_(flow.tensor(random.uniform(0.5, 1.5, tuple(buffer.shape)).astype(np.float32)))
    card = ModelCard(
        "student", arch, "noise", shape, tuple("abcdefghij"), (0.3,) * shape[0], (0.2,) * shape[0]
    )
    path.write_bytes(to_onnx(network, card))
    images = random.integers(0, 256, (3, *shape)).astype(np.uint8)
    with flow.no_grad():
        expected = network(flow.tensor(Normalization(card.mean, card.std).apply(images))).numpy()
    tolerance = 1e-5 * np.abs(expected).max()
    np.testing.assert_allclose(OnnxModel.load(path).logits(images), expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_own_networks(arch: str, tmp_path: Path) -> None:
    assert_same(arch, (1, 28, 28), tmp_path / "net.onnx")


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mobilenet_v3_small", "squeezenet1_1", "ghostnet"])
def test_networks_of_flowvision(name: str, tmp_path: Path) -> None:
    assert_same(f"flowvision:{name}", (3, 32, 32), tmp_path / "net.onnx")


def test_networks_of_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    assert_same("mine.py:tiny", (3, 20, 24), tmp_path / "net.onnx")
