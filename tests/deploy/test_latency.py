"""Times are those of the networks that were asked, in turn."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from kdtrain.deploy.latency import Clock, Images, Timing, measure, stopwatch

IMAGES = np.zeros((30, 1, 2, 2), np.uint8)


def sleeper(milliseconds: float) -> Clock:
    def ask(images: Images) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
        time.sleep(milliseconds * len(images) / 1000)
        return np.zeros((len(images), 2), np.float32)

    return stopwatch(ask)


def test_a_slower_network_is_seen_to_be_slower() -> None:
    makers: dict[str, Callable[[], Clock]] = {"fast": partial(sleeper, 0.1), "slow": partial(sleeper, 2)}
    timings = measure(makers, IMAGES, rounds=3)
    assert list(timings) == ["fast", "slow"]
    fast, slow = timings["fast"], timings["slow"]
    assert slow.milliseconds.shape == (3, 20)
    assert slow.milliseconds.min() >= 2
    assert 0.1 <= fast.latency(50) <= slow.latency(50) <= slow.latency(95)
    assert slow.throughput <= 500, "30 images in at least 60 ms"
    assert slow.throughput < fast.throughput
    assert slow.batch_size == 30


def test_each_has_its_turn_in_every_round() -> None:
    asked: list[str] = []

    def make(name: str) -> Clock:
        def ask(images: Images) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
            asked.append(name)
            return np.array([[len(asked)]], np.float32)

        return stopwatch(ask)

    def last() -> Clock:
        def ask(images: Images) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
            turns = [
                name for number, name in enumerate(asked) if name != (asked[number - 1] if number else "")
            ]
            assert turns == ["a", "b"] * (len(turns) // 2), turns
            return np.zeros((1, 1), np.float32)

        return stopwatch(ask)

    measure({"a": partial(make, "a"), "b": partial(make, "b"), "judge": last}, IMAGES[:2], rounds=2)


def test_spread_is_how_far_half_of_the_rounds_were() -> None:
    milliseconds = np.array([[8.0, 8, 8], [9, 9, 9], [10, 10, 10], [11, 11, 99], [20, 20, 20]])
    timing = Timing(milliseconds, np.array([100.0, 100, 100]), batch_size=5)
    assert timing.latency(50) == 10
    assert timing.latency_spread == pytest.approx(0.1)
    assert timing.throughput_spread == 0
