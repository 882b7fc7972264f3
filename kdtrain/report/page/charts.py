"""The charts of ``report.html``: where each line, point and bar goes; templates/charts.html draws them.

Lengths are in the units of a chart's own view box; y grows downwards, as in SVG.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import LogLocator, MaxNLocator

from kdtrain.metrics.calibration import Reliability

WIDTH, HEIGHT = 420, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 34
_LOG_FROM = 4.0
"""How many times the least value the largest must be for a log axis to show more than a plain one."""


@dataclass(frozen=True)
class Axis:
    """Values ``low`` to ``high`` along the lengths ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """Returns where a value lies; what is outside lies on the edge."""
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, self._inside(value)))
        return round(self.start + (at - low) / (high - low) * (self.end - self.start), 1)

    def _inside(self, value: float) -> float:
        return min(max(value, self.low), self.high)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Places of round values, and how these are written."""
        if self.log and self.high / self.low > 10:
            subs = (1, 2, 5) if self.high / self.low < 300 else (1,)
            values = LogLocator(subs=subs).tick_values(self.low, self.high)
        else:
            values = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        edge = 1e-9 * (self.high - self.low)
        return [(self.place(v), _plain(v)) for v in values if self.low - edge <= v <= self.high + edge]


@dataclass(frozen=True)
class Line:
    """A model's curve: its mean as SVG points, the band that all seeds lie in, its last value."""

    model: str
    mean: str
    band: str
    last: tuple[float, float]


@dataclass(frozen=True)
class Curves:
    """Lines over epochs."""

    x: Axis
    y: Axis
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Differences:
    """The seeds' paired differences as places, with their mean and its interval, if there is one."""

    x: Axis
    points: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ReliabilityChart:
    """A bar per bin that has images: left edge, accuracy, mean probability, images on a log scale."""

    x: Axis
    y: Axis
    width: float
    bars: tuple[tuple[float, float, float, float], ...]


def curves(histories: dict[str, list[list[dict[str, Any]]]], key: str, scale: float = 1.0) -> Curves | None:
    """Returns a figure of each model per epoch; None if no model has a history.

    Args:
        histories: by model, each seed's rows of ``held_out_history``.
        key: which figure of a row; 1 - accuracy goes by the name ``error_fraction``.
        scale: what it is multiplied by.
    """
    series = {model: _by_epoch(seeds, key, scale) for model, seeds in histories.items()}
    series = {model: found for model, found in series.items() if len(found[0])}
    if not series:
        return None
    x = Axis(
        1, max(2.0, *(float(epochs[-1]) for epochs, _ in series.values())), _LEFT + 6, WIDTH - _RIGHT - 6
    )
    y = _vertical([value for _, values in series.values() for value in values.ravel().tolist()])
    return Curves(x, y, tuple(_line(model, *found, x, y) for model, found in series.items()))


def _by_epoch(
    seeds: Sequence[Sequence[dict[str, Any]]], key: str, scale: float
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Returns (epochs) that every seed reached, and (seeds, epochs) of the figure.

    A mean over fewer and fewer seeds would jump where one stopped early.
    """
    rows = [{row["epoch"]: scale * float(row[key]) for row in history} for history in seeds]
    epochs = sorted(set(rows[0]).intersection(*rows[1:])) if rows else []
    return np.array(epochs, np.int64), np.array([[row[epoch] for epoch in epochs] for row in rows])


def _vertical(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    if low > 0 and high / low >= _LOG_FROM:
        return Axis(low / 1.1, high * 1.1, HEIGHT - _BOTTOM, _TOP, log=True)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return Axis(max(0.0, low - margin), high + margin, HEIGHT - _BOTTOM, _TOP)


def _line(
    model: str, epochs: npt.NDArray[np.int64], values: npt.NDArray[np.float64], x: Axis, y: Axis
) -> Line:
    at = [x.place(float(epoch)) for epoch in epochs]
    mean, low, high = (
        list(zip(at, map(y.place, row.tolist()), strict=True))
        for row in (values.mean(axis=0), values.min(axis=0), values.max(axis=0))
    )
    return Line(model, _points(mean), _points([*high, *reversed(low)]) if len(values) > 1 else "", mean[-1])


def differences(found: Sequence[Mapping[str, Any]]) -> list[Differences]:
    """Returns a chart for each entry of ``differences``, all on one axis, which shows zero."""
    bounds = [_bounds(difference) for difference in found]
    gains = [[gain["percentage_points"] for gain in difference["gains"]] for difference in found]
    shown = [0.0, *(value for both in (bounds, gains) for row in both for value in row)]
    margin = 0.08 * (max(shown) - min(shown)) or 0.1
    x = Axis(min(shown) - margin, max(shown) + margin, 12, WIDTH - 12)
    return [
        Differences(
            x,
            tuple(map(x.place, points)),
            x.place(difference["gain_percentage_points"]["mean"]),
            (x.place(interval[0]), x.place(interval[1])) if interval else None,
        )
        for difference, points, interval in zip(found, gains, bounds, strict=True)
    ]


def _bounds(difference: Mapping[str, Any]) -> tuple[()] | tuple[float, float]:
    """The interval of a difference: over the seeds, or over the images of a single one."""
    gain, one = difference["gain_percentage_points"], difference["one_seed"]
    if one is not None:
        return one["low_percentage_points"], one["high_percentage_points"]
    return () if gain["low"] is None else (gain["low"], gain["high"])


def reliability_chart(found: Reliability) -> ReliabilityChart:
    """Returns the diagram of a network's probabilities beside its accuracy."""
    side = 240
    x, y = Axis(0, 1, _LEFT, _LEFT + side), Axis(0, 1, _TOP + side, _TOP)
    most, width = math.log1p(found.counts.max()), side / len(found.counts)
    bars = tuple(
        (
            round(_LEFT + number * width, 1),
            y.place(accuracy),
            y.place(confidence),
            round(30 * math.log1p(count) / most, 1),
        )
        for number, (count, accuracy, confidence) in enumerate(
            zip(found.counts.tolist(), found.accuracy.tolist(), found.confidence.tolist(), strict=True)
        )
        if count
    )
    return ReliabilityChart(x, y, round(width, 1), bars)


def _points(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in places)


def _plain(value: float) -> str:
    return f"{round(value, 10) + 0.0:g}"
