"""A checkpoint as a predictor: logits, timing, a network of its own after a reload, and its benchmark."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kdtrain.data.dataset import Dataset
from kdtrain.deploy.benchmark import run_benchmark
from kdtrain.deploy.benchmark_table import benchmark_table
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
    assert logits.shape == (count, 10)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_reloaded_model_has_a_network_of_its_own(model: OneFlowModel, mnist: Dataset) -> None:
    reloaded = model.reloaded()
    assert reloaded.network is not model.network
    images = mnist.test.images[:5]
    np.testing.assert_array_equal(reloaded.logits(images), model.logits(images))
    assert len(reloaded.seconds(images, 2)) == 3
    assert (model.runtime, model.parameters, model.path.name) == ("oneflow", 109_386, "student.safetensors")


def test_benchmark_table_fits_80_columns(model: OneFlowModel, mnist: Dataset) -> None:
    results = run_benchmark([model, model.reloaded()], mnist.test, batch_size=50, rounds=2)
    assert [result.timing.batch_size for result in results] == [50, 50]
    stream = io.StringIO()
    Console(file=stream, width=80).print(benchmark_table(results))
    text = stream.getvalue()
    assert all(len(line) <= 80 for line in text.splitlines())
    assert "…" not in text
    for figure in ("student.safetensors", "oneflow", "109,386", f"{100 * results[0].test.accuracy:.2f}"):
        assert text.count(figure) == 2
