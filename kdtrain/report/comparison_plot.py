"""``compare.png``: accuracy and cross-entropy of each model over the epochs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdtrain.metrics.names import Interval
from kdtrain.report.style import GREY, LINES, EpochSeries, house_style
from kdtrain.report.verdict import gain_text, interval_text
from kdtrain.store.record import Comparison


def comparison_figure(comparison: Comparison, title_extra: str = "") -> Figure:
    """Returns the figure: accuracy (left) and cross-entropy (right) on the held-out set, over the epochs.

    A line is the mean over the seeds, a band reaches from the lowest to the highest. The axes cover the
    second half of each training, where the models differ; values outside are stated. The title has the
    accuracies on the test set and the gain.

    Args:
        comparison: the comparison.
        title_extra: a further line of the title.
    """
    with house_style():
        figure = Figure(figsize=(11, 5.6), layout="constrained")
        accuracy_axes, loss_axes = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
        _draw(accuracy_axes, _series(comparison, "accuracy", 100.0), ceiling=100.0, smallest=0.2)
        _draw(loss_axes, _series(comparison, "cross_entropy", 1.0), ceiling=np.inf, smallest=0.005)
        accuracy_axes.set_title("held-out accuracy, %")
        loss_axes.set_title("held-out cross-entropy, nats")
        handles, labels = accuracy_axes.get_legend_handles_labels()
        seeds = comparison.distillation.gain.n
        spread = f"lines: mean of {seeds} seeds, bands: lowest to highest" if seeds > 1 else None
        figure.legend(
            handles,
            labels,
            loc="outside lower center",
            ncols=len(labels),
            title=spread,
            handlelength=3.5,
            fontsize=10.5,
        )
        figure.suptitle(_title(comparison, title_extra), fontsize=12)
    return figure


def _title(comparison: Comparison, extra: str) -> str:
    accuracies = [
        f"{model} {_accuracy_text(summary.accuracy)}" for model, summary in comparison.summaries.items()
    ]
    in_a_row = 3 if len(accuracies) > 4 else 4  # what the figure is wide enough for, over seeds
    rows = [",  ".join(accuracies[:in_a_row]), ",  ".join(accuracies[in_a_row:])]
    gain = comparison.distillation.gain
    gain_line = f"gain of distillation {gain_text(gain)} points, {interval_text(gain)}"
    return "\n".join(filter(None, [f"test accuracy:  {rows[0]}", rows[1], gain_line, extra]))


def _accuracy_text(accuracy: Interval) -> str:
    spread = "" if accuracy.sd is None else f" ± {accuracy.sd:.2f}"
    return f"{accuracy.mean:.2f}{spread} %"


def _series(comparison: Comparison, figure: str, scale: float) -> dict[str, EpochSeries]:
    """Returns a figure of ``EpochPoint`` times ``scale``, by model; models without a history are left out."""
    series = {}
    for model in comparison.summaries:
        histories = [
            {point.epoch: scale * float(getattr(point, figure)) for point in result.history}
            for result in comparison.models
            if result.model == model
        ]
        series[model] = EpochSeries.of(histories)
    return {model: curve for model, curve in series.items() if len(curve.epochs)}


def _draw(axes: Axes, curves: Mapping[str, EpochSeries], ceiling: float, smallest: float) -> None:
    axes.set_xlabel("epoch")
    axes.grid(True)
    for model, curve in curves.items():
        line = LINES[model]
        axes.plot(
            curve.epochs,
            curve.mean,
            color=line.colour,
            linestyle=line.dashes,
            linewidth=1.8,
            marker=line.marker,
            markerfacecolor=line.face,
            markevery=max(1, len(curve.epochs) // 20),
            label=model,
        )
        if len(curve.values) > 1:
            low, high = curve.values.min(axis=0), curve.values.max(axis=0)
            axes.fill_between(curve.epochs, low, high, color=line.colour, alpha=0.18, linewidth=0)
    if "teacher" in curves:
        final, colour = curves["teacher"].mean[-1], LINES["teacher"].colour
        axes.axhline(final, color=colour, linewidth=1.4, linestyle=":", label="teacher's last epoch")
    if curves:
        _focus(axes, curves, ceiling, smallest)


def _late_values(curve: EpochSeries, longest: int) -> npt.NDArray[np.float64]:
    """Returns the values that the axes must show, (V,) float64: without outliers, but with the last epoch.

    They are those of the second half of the epochs; of all epochs if the longest series has four or fewer.
    """
    values = curve.values[:, len(curve.epochs) // 2 if longest > 4 else 0 :]
    low, high = np.percentile(values, [25, 75])
    reach = 3 * (high - low)
    near = values[(values >= low - reach) & (values <= high + reach)]
    return np.concatenate([near, values[:, -1]])


def _focus(axes: Axes, curves: Mapping[str, EpochSeries], ceiling: float, smallest: float) -> None:
    """Limits the axes to the late epochs, at least ``smallest`` high, and states the extremes outside."""
    longest = max(len(curve.epochs) for curve in curves.values())
    late = np.concatenate([_late_values(curve, longest) for curve in curves.values()])
    low, high = float(late.min()), float(late.max())
    margin = max(0.08 * (high - low), (smallest - (high - low)) / 2)
    axes.set_ylim(low - margin, high + margin)
    # The axis may extend beyond 100 % or below 0 to leave room for markers; its ticks must not.
    ticks = axes.get_yticks()
    axes.set_yticks(ticks[(ticks >= max(low - margin, 0)) & (ticks <= min(high + margin, ceiling))])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, max(int(curve.epochs[-1]) for curve in curves.values()) + 0.5)
    means = np.concatenate([curve.mean for curve in curves.values()])
    outside = [f"down to {means.min():.3g}"] if means.min() < low - margin else []
    outside += [f"up to {means.max():.3g}"] if means.max() > high + margin else []
    if outside:
        axes.set_title(
            f"off the axis: {', '.join(outside)}", loc="right", fontsize=9, fontweight="normal", color=GREY
        )
