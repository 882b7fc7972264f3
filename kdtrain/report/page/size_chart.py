"""The first chart of ``report.html``: test accuracy over the number of parameters."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from kdtrain.report.page.charts import HEIGHT, WIDTH, Axis

_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 12, 12, 38
_APART = 20  # between models of one size, in the units of the view box
_BEYOND = 1.5
"""Spans of the means that the axis reaches beyond them at most; few seeds have very wide intervals."""


@dataclass(frozen=True)
class SizePoint:
    """A model: the position of its mean accuracy, and the ends of its interval, if there is one.

    Attributes:
        model: its name.
        x: position of its number of parameters.
        y: position of its mean accuracy.
        ends: lower and upper end of the interval; an end outside the axis lies on the edge.
        caps: the ends that lie within the axis.
    """

    model: str
    x: float
    y: float
    ends: tuple[float, float] | None
    caps: tuple[float, ...]


@dataclass(frozen=True)
class SizeChart:
    """Models by size and accuracy.

    Attributes:
        x: the axis of parameters, logarithmic.
        y: the axis of test accuracies, per cent.
        points: the models whose size is known.
        ceiling: position of the accuracy of a teacher of unknown size; None for one of known size.
    """

    x: Axis
    y: Axis
    points: tuple[SizePoint, ...]
    ceiling: float | None


def size_chart(models: Mapping[str, Mapping[str, Any]]) -> SizeChart:
    """Returns the chart.

    Args:
        models: the entry ``summaries`` of compare.json.
    """
    sizes = {model: int(figures["parameters"]) for model, figures in models.items() if figures["parameters"]}
    accuracies = {model: figures["test_accuracy_percent"] for model, figures in models.items()}
    y = _accuracy_axis(list(accuracies.values()))
    x = Axis(
        min(sizes.values()) / 4, max(sizes.values()) * 4, _LEFT, WIDTH - _RIGHT, log=True, text=short_count
    )
    number = Counter(sizes.values())
    placed: Counter[int] = Counter()
    points = []
    for model, size in sizes.items():
        shift = _APART * (placed[size] - (number[size] - 1) / 2)
        placed[size] += 1
        points.append(_point(model, round(x.place(size) + shift, 1), accuracies[model], y))
    unknown = "teacher" in models and "teacher" not in sizes
    return SizeChart(x, y, tuple(points), y.place(accuracies["teacher"]["mean"]) if unknown else None)


def _accuracy_axis(accuracies: list[Mapping[str, Any]]) -> Axis:
    means = [float(accuracy["mean"]) for accuracy in accuracies]
    span = max(means) - min(means) or 0.1
    lows = [accuracy["low"] for accuracy in accuracies if accuracy["low"] is not None]
    highs = [accuracy["high"] for accuracy in accuracies if accuracy["high"] is not None]
    low = max(min([*means, *lows]), min(means) - _BEYOND * span)
    high = min(max([*means, *highs]), max(means) + _BEYOND * span)
    margin = 0.08 * (high - low) if high - low > 1e-9 else 1.0  # all models alike: an axis needs a length
    return Axis(max(0.0, low - margin), min(100.0, high + margin), HEIGHT - _BOTTOM, _TOP)


def _point(model: str, x: float, accuracy: Mapping[str, Any], y: Axis) -> SizePoint:
    at = y.place(accuracy["mean"])
    if accuracy["low"] is None or accuracy["low"] == accuracy["high"]:
        return SizePoint(model, x, at, None, ())
    ends = accuracy["low"], accuracy["high"]
    caps = tuple(y.place(end) for end in ends if y.low <= end <= y.high)
    return SizePoint(model, x, at, (y.place(ends[0]), y.place(ends[1])), caps)


def short_count(value: float) -> str:
    """Returns a number of parameters as text: ``"500"``, ``"20 k"``, ``"1.5 M"``."""
    for factor, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if value >= factor:
            return f"{value / factor:.3g}{unit}"
    return f"{value:.3g}"


def ratio_text(teacher: int, student: int) -> tuple[str, str]:
    """Returns the student's size beside its teacher's: ``("11.0 times", "smaller than the teacher")``.

    Args:
        teacher: the teacher's number of parameters; 0 if unknown.
        student: the student's.
    """
    if not teacher:
        return "unknown", "size beside the teacher"
    if teacher == student:
        return "1.0 times", "as large as the teacher"
    if student > teacher:
        return f"{student / teacher:.1f} times", "as large as the teacher"
    return f"{teacher / student:.1f} times", "smaller than the teacher"
