"""The chart of test accuracy over size: teacher, plain student and distilled student of comparisons."""

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
from kdtrain.report.style import GREY, LINES, house_style, save_figure
from kdtrain.report.verdict import gain_text, interval_text

IMAGE = Path(__file__).resolve().parents[1] / "docs" / "images" / "accuracy-over-size.png"

_NAMES = {"teacher": "teacher", "student": "plain student", "student_kd": "distilled student"}
_ASIDE = {"student": -0.06, "student_kd": 0.06}
"""How far the students' marks are moved aside, as a share of the way to the teacher: they have one size."""
_LABELS = {"teacher": (0, 14, "center", "bottom"), "student": (-12, 0, "right", "center")}
"""Place of a model's text beside its mark, in points, and how it is aligned there."""
_RIGHT = (12, 0, "left", "center")


@dataclass(frozen=True)
class SizePanel:
    """One comparison in the chart.

    Attributes:
        title: the heading, such as the name of the data set.
        parameters: number of parameters, by model: ``teacher``, ``student``, ``student_kd``.
        accuracies: test accuracy over the seeds, by model, in percent.
        gain: accuracy of ``student_kd`` minus that of ``student``, in percentage points.
    """

    title: str
    parameters: Mapping[str, int]
    accuracies: Mapping[str, Interval]
    gain: Interval

    @classmethod
    def from_json(cls, title: str, document: Mapping[str, Any]) -> SizePanel:
        """Returns the panel of a comparison.

        Args:
            title: the heading.
            document: the content of ``compare.json``.

        Raises:
            DataError: a figure is missing, or a network's size is not known.
        """
        try:
            models = {name: document["summaries"][name] for name in _NAMES}
            parameters = {name: int(model["parameters"]) for name, model in models.items()}
            accuracies = {name: Interval(**model["test_accuracy_percent"]) for name, model in models.items()}
            (gain,) = (
                Interval(**difference["gain_percentage_points"])
                for difference in document["differences"]
                if (difference["model"], difference["baseline"]) == ("student_kd", "student")
            )
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{title}: this is no compare.json of a comparison with a teacher ({error!r})."
            ) from error
        for name, count in parameters.items():
            if count <= 0:
                raise DataError(f"{title}: the number of parameters of {name} is unknown.")
        return cls(title, parameters, accuracies, gain)


def size_figure(panels: Sequence[SizePanel]) -> Figure:
    """Returns the figure: for each comparison a panel with accuracy (%) over parameters (log axis).

    A bar at a mark is the 95 % interval of the mean over the seeds. A model of one training has none.
    The axes of accuracy differ from panel to panel, and do not begin at 0.

    Args:
        panels: the comparisons, from left to right.
    """
    with house_style():
        figure = Figure(figsize=(5.5 * len(panels), 4.3), layout="constrained")
        for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
            _draw(axes, panel)
        figure.supxlabel(_caption(panels), fontsize=9.5, color=GREY)
    return figure


def _draw(axes: Axes, panel: SizePanel) -> None:
    reach = max(panel.parameters.values()) / min(panel.parameters.values())
    for model, name in _NAMES.items():
        accuracy, line = panel.accuracies[model], LINES[model]
        place = panel.parameters[model] * max(reach, 3) ** _ASIDE.get(model, 0.0)
        axes.errorbar(
            place,
            accuracy.mean,
            yerr=None if accuracy.low is None else accuracy.mean - accuracy.low,
            color=line.colour,
            marker=line.marker,
            markersize=9,
            markerfacecolor=line.face,
            markeredgewidth=1.8,
            capsize=5,
            linewidth=2,
        )
        right, up, across, along = _LABELS.get(model, _RIGHT)
        axes.annotate(
            f"{name}\n{accuracy.mean:.2f} %",
            (place, accuracy.mean),
            xytext=(right, up),
            textcoords="offset points",
            ha=across,
            va=along,
            color=line.colour,
            fontweight="bold",
        )
    _set_axes(axes, panel, max(reach, 3))
    axes.set_title(f"{panel.title}\n", fontsize=13)
    gain = f"distillation: {gain_text(panel.gain)} points, {interval_text(panel.gain)}"
    axes.text(0, 1.03, gain, transform=axes.transAxes, fontsize=9.5)


def _set_axes(axes: Axes, panel: SizePanel, reach: float) -> None:
    """Sets limits that leave room for the texts, and a tick for each size."""
    sizes = sorted(set(panel.parameters.values()))
    axes.set_xscale("log")
    axes.set_xlim(sizes[0] / reach**0.95, sizes[-1] * reach**0.45)
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("parameters (log axis)")
    ends = [end for value in panel.accuracies.values() for end in (value.mean, value.low, value.high)]
    known = [end for end in ends if end is not None]
    room = max(max(known) - min(known), 0.1)
    low, high = min(known) - 0.15 * room, max(known) + 0.3 * room
    axes.set_ylim(low, high)
    axes.set_yticks([tick for tick in axes.get_yticks() if low <= tick <= min(high, 100)])
    axes.set_ylabel("test accuracy, %")
    axes.grid(True)


def _caption(panels: Sequence[SizePanel]) -> str:
    seeds = " and ".join(str(count) for count in sorted({panel.gain.n for panel in panels}))
    teachers = {panel.accuracies["teacher"].n for panel in panels}
    of_teachers = "; teachers: one training" if teachers == {1} else "; teachers too"
    if seeds == "1":
        return "one seed: no interval"
    return f"students: means over {seeds} seeds with 95 % intervals of the mean{of_teachers}"


def main() -> None:
    """Draws the image; the panels have the order of the arguments."""
    parser = argparse.ArgumentParser(prog="scripts/accuracy-over-size", description=__doc__)
    parser.add_argument(
        "comparisons", nargs="+", metavar="TITLE=FILE", help="a panel's title, and its compare.json"
    )
    parser.add_argument(
        "--output", type=Path, default=IMAGE, help="the PNG [docs/images/accuracy-over-size.png]"
    )
    options = parser.parse_args()
    try:
        save_figure(size_figure([_panel(argument) for argument in options.comparisons]), options.output)
    except (KdtrainError, OSError, ValueError) as error:
        parser.error(str(error))
    print(options.output)


def _panel(argument: str) -> SizePanel:
    title, equals, file = argument.partition("=")
    if not equals:
        raise ValueError(f"{argument}: write TITLE=FILE")
    return SizePanel.from_json(title, json.loads(Path(file).read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
