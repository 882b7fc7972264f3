"""Benchmarks: latency and throughput in alternating rounds, a checkpoint as a predictor, and the table."""

from __future__ import annotations

import io
import itertools
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from kdtrain.data.dataset import Dataset
from kdtrain.deploy.benchmark import Timing, benchmark_table, measure, run_benchmark
from kdtrain.deploy.predict.predictor import Clock, Images, Logits, OneFlowModel, stopwatch
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_model, save_model, snapshot

IMAGES = np.zeros((30, 1, 2, 2), np.uint8)


def sleeper(milliseconds: float) -> Clock:
    """Returns the clock of a network that takes so long for each image."""

    def logits(images: Images) -> Logits:
        time.sleep(milliseconds * len(images) / 1000)
        return np.zeros((len(images), 2), np.float32)

    return stopwatch(logits)


def test_a_slower_network_is_seen_to_be_slower() -> None:
    fast, slow = measure([partial(sleeper, 0.1), partial(sleeper, 2)], IMAGES, rounds=3)
    assert slow.milliseconds.shape == (3, 20)
    assert slow.milliseconds.min() >= 2
    assert 0.1 <= fast.latency(50) <= slow.latency(50) <= slow.latency(95)
    assert slow.throughput <= 500, "30 images in at least 60 ms"
    assert slow.throughput < fast.throughput
    assert slow.batch_size == 30


def test_every_round_times_every_network() -> None:
    calls: list[str] = []

    def make(name: str) -> Clock:
        def logits(images: Images) -> Logits:
            calls.append(name)
            return np.zeros((1, 1), np.float32)

        return stopwatch(logits)

    def check() -> Clock:
        """Returns the clock of a third network, which fails unless the others were called in turn."""

        def logits(images: Images) -> Logits:
            turns = [name for name, _ in itertools.groupby(calls)]
            assert turns == ["a", "b"] * (len(turns) // 2), turns
            return np.zeros((1, 1), np.float32)

        return stopwatch(logits)

    measure([partial(make, "a"), partial(make, "b"), check], IMAGES[:2], rounds=2)


def test_spread_is_the_relative_median_absolute_deviation() -> None:
    milliseconds = np.array([[8.0, 8, 8], [9, 9, 9], [10, 10, 10], [11, 11, 99], [20, 20, 20]])
    timing = Timing(milliseconds, np.array([100.0, 100, 100]), batch_size=5)
    assert timing.latency(50) == 10
    assert timing.latency_spread == pytest.approx(0.1)
    assert timing.throughput_spread == 0


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
