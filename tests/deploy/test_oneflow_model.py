"""A checkpoint as a predictor: logits, timing and a network of its own after a reload."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from kdtrain.data.dataset import Dataset
from kdtrain.deploy.oneflow_model import OneFlowModel
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_model, save_model, snapshot


@pytest.fixture
def model(student: flow.nn.Module, card: ModelCard, tmp_path: Path) -> OneFlowModel:
    save_model(tmp_path / "student.safetensors", snapshot(student), card)
    return OneFlowModel(load_model(tmp_path / "student.safetensors"))


@pytest.mark.parametrize("count", [1, 250, 251, 600])
def test_logits_are_the_networks(
    model: OneFlowModel, student: flow.nn.Module, mnist: Dataset, count: int
) -> None:
    images = mnist.test.images[:count]
    logits = model.logits(images)
    with flow.no_grad():
        expected = student.eval()(flow.tensor(mnist.normalization.apply(images))).numpy().copy()
    assert (logits.shape, logits.dtype) == ((count, 10), np.float32)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    before = logits.copy()
    model.logits(mnist.test.images[-count:])
    np.testing.assert_array_equal(logits, before, "later calls do not change them")


def test_reloaded_model_has_a_network_of_its_own(model: OneFlowModel, mnist: Dataset) -> None:
    reloaded = model.reloaded()
    assert reloaded.network is not model.network
    images = mnist.test.images[:5]
    np.testing.assert_array_equal(reloaded.logits(images), model.logits(images))
    assert len(reloaded.seconds(images, 2)) == 3
    assert (model.runtime, model.parameters, model.path.name) == ("oneflow", 109_386, "student.safetensors")
