"""How long networks take to answer, measured so that what disturbs one disturbs all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdtrain.runtime.console import with_progress_bar
from kdtrain.runtime.processes import Job, available_cores, run_jobs
from kdtrain.runtime.ranks import Ranks

Images = npt.NDArray[np.uint8]
Ask = Callable[[Images], npt.NDArray[np.float32]]
"""From images (N, C, H, W), uint8, to logits (N, classes), float32."""

Clock = Callable[[Images, int], list[float]]
"""Asks about images in portions of so many; returns the seconds of each, in order."""

_SINGLE = 20  # images asked about one by one, in a round
_WARM_UP = 3  # rounds of which no time is kept


@dataclass(frozen=True)
class Timing:
    """How long one network took.

    Attributes:
        milliseconds: for each image that was asked about alone, (rounds, images).
        images_per_second: of the batch of each round, (rounds,).
        batch_size: images in that batch.
    """

    milliseconds: npt.NDArray[np.float64]
    images_per_second: npt.NDArray[np.float64]
    batch_size: int

    def latency(self, percent: float) -> float:
        """Returns the percentile, in milliseconds, over all images of all rounds."""
        return float(np.percentile(self.milliseconds, percent))

    @property
    def latency_spread(self) -> float:
        """How far the rounds' medians were from their own: half of them were at most as far, 0..1 of it."""
        return _spread(np.median(self.milliseconds, axis=1))

    @property
    def throughput(self) -> float:
        """The median over the rounds, in images per second."""
        return float(np.median(self.images_per_second))

    @property
    def throughput_spread(self) -> float:
        """The same for throughput."""
        return _spread(self.images_per_second)


def _spread(rounds: npt.NDArray[np.float64]) -> float:
    """Returns the median absolute deviation from the median, as a fraction of that."""
    median = np.median(rounds)
    return float(np.median(np.abs(rounds - median)) / median)


def measure(
    makers: Mapping[str, Callable[[], Clock]], images: Images, rounds: int, cores: int = 1
) -> dict[str, Timing]:
    """Times networks in rounds in which each has its turn, in a process of its own.

    In a forked child oneflow is fastest (``kdtrain/runtime/processes.py``). Processes that the makers
    start have the same cores.

    Args:
        makers: make the networks' clocks, by name; called in that process.
        images: to ask about: each round takes the first few one by one, then all at once.
        rounds: how many.
        cores: how many the process may use, for networks with several threads.
    """
    allowed = available_cores()[:cores]

    def work(ranks: Ranks) -> dict[str, Timing]:
        os.sched_setaffinity(0, allowed)
        return _measure(makers, images, rounds)

    return run_jobs([Job("the measurement", work)])[0]


def stopwatch(ask: Ask) -> Clock:
    """Returns the clock of a network that is asked in this process."""

    def seconds(images: Images, size: int) -> list[float]:
        return [_seconds(ask, images[start : start + size]) for start in range(0, len(images), size)]

    return seconds


def _measure(makers: Mapping[str, Callable[[], Clock]], images: Images, rounds: int) -> dict[str, Timing]:
    networks = {name: make() for name, make in makers.items()}
    single: dict[str, list[list[float]]] = {name: [] for name in networks}
    batches: dict[str, list[float]] = {name: [] for name in networks}
    for _ in with_progress_bar(range(_WARM_UP + rounds), "measuring", _WARM_UP + rounds, "round"):
        for name, seconds in networks.items():
            single[name].append([1000 * each for each in seconds(images[:_SINGLE], 1)])
            batches[name].append(len(images) / sum(seconds(images, len(images))))
    return {
        name: Timing(
            np.array(single[name][_WARM_UP:]), np.array(batches[name][_WARM_UP:]), batch_size=len(images)
        )
        for name in networks
    }


def _seconds(ask: Ask, images: Images) -> float:
    start = time.perf_counter()
    ask(images)
    return time.perf_counter() - start
