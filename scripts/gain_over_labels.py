"""The image of the gain over the number of labels, from the files ``compare.json`` of comparisons."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from kdtrain.errors import DataError, KdtrainError
from kdtrain.metrics.names import Interval
from kdtrain.report.style import GREY, house_style, save_figure

IMAGE = Path(__file__).resolve().parents[1] / "docs" / "images" / "gain-over-labels.png"

_COLOURS = ("#1b6ca8", "#c05a00", "#4d7c0f")
_MARKERS = ("o", "s", "^")


@dataclass(frozen=True)
class Point:
    """One comparison in the image.

    Attributes:
        labels: number of training images with a label.
        is_all: whether these are all training images.
        plain: mean test accuracy of the plain student, per cent.
        distilled: mean test accuracy of the distilled student, per cent.
        gain: percentage points, over the seeds.
    """

    labels: int
    is_all: bool
    plain: float
    distilled: float
    gain: Interval

    @classmethod
    def from_json(cls, document: Mapping[str, Any], all_labels: int) -> Point:
        """Returns the point of a comparison.

        Args:
            document: the content of ``compare.json``.
            all_labels: number of training images of a data set whose images all have a label.

        Raises:
            DataError: a figure is missing.
        """
        try:
            labels = document["conditions"]["labels"]
            models = document["summaries"]
            plain, distilled = (
                float(models[name]["test_accuracy_percent"]["mean"]) for name in ("student", "student_kd")
            )
            gain = Interval(**document["differences"][0]["gain_percentage_points"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise DataError(f"this is no compare.json ({error!r})") from error
        return cls(labels["kept"] if labels else all_labels, labels is None, plain, distilled, gain)


def labels_figure(series: Mapping[str, Sequence[Point]]) -> Figure:
    """Returns the figure: gain in points over the number of labels (log axis), a line for each data set.

    Args:
        series: the points of each data set, by its name.
    """
    with house_style():
        figure = Figure(figsize=(8.6, 4.6), layout="constrained")
        axes = figure.add_subplot()
        axes.axhline(0, color=GREY, linewidth=1)
        for number, (title, points) in enumerate(series.items()):
            _draw(axes, title, sorted(points, key=lambda point: point.labels), number, len(series))
        points = [point for of_series in series.values() for point in of_series]
        ticks = sorted({point.labels: point.is_all for point in points}.items())
        axes.set_xscale("log")
        axes.set_xlim(ticks[0][0] / 1.5, ticks[-1][0] * 1.6)
        axes.set_xticks(
            [labels for labels, _ in ticks],
            [f"all\n{labels:,}" if is_all else f"{labels:,}" for labels, is_all in ticks],
        )
        axes.xaxis.set_minor_locator(NullLocator())
        axes.margins(y=0.13)  # room for the texts
        axes.set_xlabel("training images with a label (log axis); the others are used without")
        axes.set_ylabel("gain of distillation, points of test accuracy")
        axes.set_title("The fewer labels, the more distillation gains", fontsize=13)
        axes.grid(True, axis="y")
        axes.legend(frameon=False, loc="upper right")
        seeds = " and ".join(str(count) for count in sorted({point.gain.n for point in points}))
        marks = "plain \N{RIGHTWARDS ARROW} distilled student, %"
        caption = f"means over {seeds} seeds with 95 % intervals; at a mark: {marks}"
        figure.supxlabel(caption, fontsize=9.5, color=GREY)
    return figure


def _draw(axes: Axes, title: str, points: Sequence[Point], number: int, lines: int) -> None:
    """Draws a data set's line, a little beside the others, so that their intervals can be read."""
    aside = 1.0 + 0.05 * (number - (lines - 1) / 2)
    places = [point.labels * aside for point in points]
    lower = [point.gain.mean - (point.gain.low or point.gain.mean) for point in points]
    upper = [(point.gain.high or point.gain.mean) - point.gain.mean for point in points]
    axes.errorbar(
        places,
        [point.gain.mean for point in points],
        yerr=[lower, upper],
        color=_COLOURS[number],
        marker=_MARKERS[number],
        markersize=7,
        capsize=4,
        linewidth=1.8,
        label=title,
    )
    above = number == 0
    for place, point in zip(places, points, strict=True):
        axes.annotate(
            f"{point.plain:.1f}\N{RIGHTWARDS ARROW}{point.distilled:.1f}",
            (place, (point.gain.high if above else point.gain.low) or point.gain.mean),
            xytext=(0, 5 if above else -5),
            textcoords="offset points",
            ha="center",
            va="bottom" if above else "top",
            fontsize=9,
            color=_COLOURS[number],
        )


def main() -> None:
    """Draws the image; several comparisons of one title make one line."""
    parser = argparse.ArgumentParser(prog="scripts/gain-over-labels", description=__doc__)
    parser.add_argument(
        "comparisons", nargs="+", metavar="TITLE=FILE", help="a line's title, and a compare.json"
    )
    parser.add_argument("--all-labels", type=int, default=60_000, help="training images of the data [60000]")
    parser.add_argument(
        "--output", type=Path, default=IMAGE, help="the PNG [docs/images/gain-over-labels.png]"
    )
    options = parser.parse_args()
    series: dict[str, list[Point]] = {}
    try:
        for argument in options.comparisons:
            title, equals, file = argument.partition("=")
            if not equals:
                raise ValueError(f"{argument}: write TITLE=FILE")
            document = json.loads(Path(file).read_text(encoding="utf-8"))
            series.setdefault(title, []).append(Point.from_json(document, options.all_labels))
        save_figure(labels_figure(series), options.output)
    except (KdtrainError, OSError, ValueError) as error:
        parser.error(str(error))
    print(options.output)


if __name__ == "__main__":
    main()
