"""Latency and throughput of networks, measured in alternating rounds so that a disturbance affects all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from kdtrain.deploy.predict import Clock, Images
from kdtrain.runtime.bars import progress_bar
from kdtrain.runtime.processes import Job, run_jobs

_SINGLE = 20  # images of a round that are computed one by one
_WARM_UP = 3  # first rounds, whose times are dropped


@dataclass(frozen=True, eq=False, repr=False)
class Timing:
    """The times of one network.

    Attributes:
        milliseconds: (rounds, images) float64, for each image that was computed alone.
        images_per_second: (rounds,) float64, of each round's batch.
        batch_size: images in that batch.
    """

    milliseconds: npt.NDArray[np.float64]
    images_per_second: npt.NDArray[np.float64]
    batch_size: int

    def __repr__(self) -> str:
        return f"<Timing {self.latency(50):.3g} ms per image, {self.throughput:,.0f} images/s>"

    def latency(self, percent: float) -> float:
        """Returns a percentile over all images of all rounds, in milliseconds."""
        return float(np.percentile(self.milliseconds, percent))

    @property
    def latency_spread(self) -> float:
        """Relative median absolute deviation of the rounds' median latencies."""
        return _relative_mad(np.median(self.milliseconds, axis=1))

    @property
    def throughput(self) -> float:
        """Median over the rounds, in images per second."""
        return float(np.median(self.images_per_second))

    @property
    def throughput_spread(self) -> float:
        """Relative median absolute deviation of the rounds' throughputs."""
        return _relative_mad(self.images_per_second)


def _relative_mad(values: npt.NDArray[np.float64]) -> float:
    """Returns the median absolute deviation from the median, divided by the median."""
    median = np.median(values)
    return float(np.median(np.abs(values - median)) / median)


def measure(
    makers: Sequence[Callable[[], Clock]], images: Images, rounds: int, cores: int = 1
) -> list[Timing]:
    """Times networks in a forked process; each round times every network once.

    In a forked process oneflow is fastest (``kdtrain/runtime/processes.py``). Processes that the makers
    start are pinned to the same cores.

    Args:
        makers: each makes a network's clock; called in the forked process.
        images: (N, C, H, W) uint8. Each round computes the first 20 one by one, then all as one batch.
        rounds: number of rounds, besides three that warm up.
        cores: cores that the process may use, for networks with several threads.

    Returns:
        A timing for each maker, in their order.
    """
    return run_jobs([Job("the measurement", partial(_measure, makers, images, rounds), cores)])[0]


def _measure(makers: Sequence[Callable[[], Clock]], images: Images, rounds: int) -> list[Timing]:
    clocks = [make() for make in makers]
    single: list[list[list[float]]] = [[] for _ in clocks]
    batches: list[list[float]] = [[] for _ in clocks]
    for _ in progress_bar("measuring", _WARM_UP + rounds, "round", range(_WARM_UP + rounds)):
        for number, clock in enumerate(clocks):
            single[number].append([1000 * seconds for seconds in clock(images[:_SINGLE], 1)])
            batches[number].append(len(images) / sum(clock(images, len(images))))
    return [
        Timing(np.array(milliseconds[_WARM_UP:]), np.array(throughputs[_WARM_UP:]), batch_size=len(images))
        for milliseconds, throughputs in zip(single, batches, strict=True)
    ]
