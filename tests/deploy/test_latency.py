"""Latency and throughput: measured in alternating rounds, and summarised over them."""

from __future__ import annotations

import itertools
import time
from functools import partial

import numpy as np
import pytest

from kdtrain.deploy.latency import Clock, Timing, measure, stopwatch
from kdtrain.deploy.predictor import Images, Logits

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
