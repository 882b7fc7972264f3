"""The charts of ``report.html``: positions of lines, points and bars, and the confusions of the classes.

templates/charts.html draws them. Positions are in the units of a chart's SVG view box; y grows downwards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.ticker import LogLocator, MaxNLocator

from kdtrain.metrics.evaluation import Evaluation
from kdtrain.metrics.probabilities import Reliability
from kdtrain.report.style import EpochSeries

WIDTH, HEIGHT = 420, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 34
_LOG_FROM = 4.0
"""Smallest ratio of the largest to the least value for which an axis is logarithmic."""

MOST_CLASSES = 20
"""Classes of the largest matrix of confusions that is shown; of more, the most frequent pairs are."""

_PAIRS = 15


@dataclass(frozen=True)
class Axis:
    """An axis that maps values ``low`` to ``high`` to positions ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False
    text: Callable[[float], str] = lambda value: f"{round(value, 10) + 0.0:g}"

    def place(self, value: float) -> float:
        """Returns the position of a value; values outside lie on the edge."""
        scaled = math.log if self.log else float
        low, high = scaled(self.low), scaled(self.high)
        inside = scaled(min(max(value, self.low), self.high))
        return round(self.start + (inside - low) / (high - low) * (self.end - self.start), 1)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Positions of round values, and their texts."""
        if self.log and self.high / self.low > 10:
            subs = (1, 2, 5) if self.high / self.low < 300 else (1,)
            values = LogLocator(subs=subs).tick_values(self.low, self.high)
        else:
            values = MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        edge = 1e-9 * (self.high - self.low)
        return [(self.place(v), self.text(v)) for v in values if self.low - edge <= v <= self.high + edge]


@dataclass(frozen=True)
class Line:
    """A model's curve: its mean and its band as SVG points, and the position of the last mean.

    The band reaches from the lowest to the highest seed; it is empty for a single seed.
    """

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
    """Positions of the seeds' paired differences, of their mean, and of its interval, if there is one."""

    x: Axis
    points: tuple[float, ...]
    mean: float
    interval: tuple[float, float] | None


@dataclass(frozen=True)
class ReliabilityChart:
    """A bar per bin that has images.

    Attributes:
        x: the axis of probabilities, 0..1.
        y: the axis of accuracies, 0..1.
        width: of a bar.
        bars: left edge, position of the accuracy, position of the mean probability, and the height of the
            bar for the number of images, on a log scale.
    """

    x: Axis
    y: Axis
    width: float
    bars: tuple[tuple[float, float, float, float], ...]


def curves(histories: dict[str, list[list[dict[str, Any]]]], key: str, scale: float = 1.0) -> Curves | None:
    """Returns the chart of a figure over the epochs; None if no model has a history.

    Args:
        histories: by model, each seed's rows of ``held_out_history``.
        key: the figure's key in a row.
        scale: factor of the figure.
    """
    series = {
        model: EpochSeries.of(
            [{row["epoch"]: scale * float(row[key]) for row in history} for history in seeds]
        )
        for model, seeds in histories.items()
    }
    series = {model: curve for model, curve in series.items() if len(curve.epochs)}
    if not series:
        return None
    last = max(2.0, *(float(curve.epochs[-1]) for curve in series.values()))
    x = Axis(1, last, _LEFT + 6, WIDTH - _RIGHT - 6)
    y = _vertical([value for curve in series.values() for value in curve.values.ravel().tolist()])
    return Curves(x, y, tuple(_line(model, curve, x, y) for model, curve in series.items()))


def _vertical(values: Sequence[float]) -> Axis:
    low, high = min(values), max(values)
    if low > 0 and high / low >= _LOG_FROM:
        return Axis(low / 1.1, high * 1.1, HEIGHT - _BOTTOM, _TOP, log=True)
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.05
    return Axis(max(0.0, low - margin), high + margin, HEIGHT - _BOTTOM, _TOP)


def _line(model: str, curve: EpochSeries, x: Axis, y: Axis) -> Line:
    across = [x.place(float(epoch)) for epoch in curve.epochs]

    def positions(values: Iterable[float]) -> list[tuple[float, float]]:
        return list(zip(across, map(y.place, values), strict=True))

    mean = positions(curve.mean.tolist())
    if len(curve.values) == 1:
        return Line(model, _points(mean), "", mean[-1])
    low = positions(curve.values.min(axis=0).tolist())
    high = positions(curve.values.max(axis=0).tolist())
    return Line(model, _points(mean), _points([*high, *reversed(low)]), mean[-1])


def differences(rows: Sequence[Mapping[str, Any]]) -> list[Differences]:
    """Returns a chart for each row of ``differences`` in compare.json, all on one axis that includes zero."""
    bounds = [_bounds(row) for row in rows]
    gains = [[gain["percentage_points"] for gain in row["gains"]] for row in rows]
    shown = [0.0, *(value for both in (bounds, gains) for row in both for value in row)]
    margin = 0.08 * (max(shown) - min(shown)) or 0.1
    x = Axis(min(shown) - margin, max(shown) + margin, 12, WIDTH - 12)
    return [
        Differences(
            x,
            tuple(map(x.place, points)),
            x.place(row["gain_percentage_points"]["mean"]),
            (x.place(interval[0]), x.place(interval[1])) if interval else None,
        )
        for row, points, interval in zip(rows, gains, bounds, strict=True)
    ]


def _bounds(row: Mapping[str, Any]) -> tuple[()] | tuple[float, float]:
    """Returns the interval of a difference: over the seeds, or of a single seed over the images."""
    gain, one_seed = row["gain_percentage_points"], row["one_seed"]
    if one_seed is not None:
        return one_seed["low_percentage_points"], one_seed["high_percentage_points"]
    return () if gain["low"] is None else (gain["low"], gain["high"])


def reliability_chart(bins: Reliability) -> ReliabilityChart:
    """Returns the reliability diagram of a network."""
    side = 240
    x, y = Axis(0, 1, _LEFT, _LEFT + side), Axis(0, 1, _TOP + side, _TOP)
    most, width = math.log1p(bins.counts.max()), side / len(bins.counts)
    bars = tuple(
        (
            round(_LEFT + number * width, 1),
            y.place(accuracy),
            y.place(confidence),
            round(30 * math.log1p(count) / most, 1),
        )
        for number, (count, accuracy, confidence) in enumerate(
            zip(bins.counts.tolist(), bins.accuracy.tolist(), bins.confidence.tolist(), strict=True)
        )
        if count
    )
    return ReliabilityChart(x, y, round(width, 1), bars)


def _points(positions: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in positions)


@dataclass(frozen=True)
class Confusions:
    """Numbers of test images by true class and prediction: means over a model's seeds.

    Attributes:
        matrix: (classes, classes) float64; rows are the truth, columns the prediction.
        most: the largest value off the diagonal, or 1 if all are 0.
        pairs: (truth, prediction, images) of the most frequent mistakes, in descending order.
    """

    matrix: npt.NDArray[np.float64]
    most: float
    pairs: tuple[tuple[int, int, float], ...]


def confusions(logits: Sequence[npt.NDArray[np.float32]], labels: npt.NDArray[np.int64]) -> Confusions:
    """Returns the confusions of a model.

    Args:
        logits: (images, classes) float32, of each seed.
        labels: (images,) int64, the true classes.
    """
    matrix = np.mean([Evaluation.from_logits(scores, labels).confusion for scores in logits], axis=0)
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_PAIRS]
    positions = [divmod(index, len(mistakes)) for index in order.tolist()]
    pairs = tuple((t, p, float(mistakes[t, p])) for t, p in positions if mistakes[t, p])
    return Confusions(matrix, float(mistakes.max()) or 1.0, pairs)
