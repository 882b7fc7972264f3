"""The comparison as a picture: accuracy and loss per epoch of the three models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdtrain.metrics.statistics import Interval
from kdtrain.report.comparison import Comparison, Model
from kdtrain.report.style import GREY, LINES, house_style
from kdtrain.report.verdict import gain_text, interval_text


@dataclass(frozen=True, eq=False)
class _Curve:
    """One figure of one model: (epochs) and (seeds, epochs), over the epochs that every seed reached."""

    model: Model
    epochs: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        return np.asarray(self.values.mean(axis=0))

    def late(self, longest: int) -> npt.NDArray[np.float64]:
        """Each seed's values in the second half of its epochs, without stray dips; of few epochs, all."""
        values = self.values[:, len(self.epochs) // 2 if longest > 4 else 0 :]
        low, high = np.percentile(values, [25, 75])
        reach = 3 * (high - low)
        near = values[(values >= low - reach) & (values <= high + reach)]
        return np.concatenate([near, values[:, -1]])


def comparison_figure(comparison: Comparison, title_extra: str = "") -> Figure:
    """Returns the picture: accuracy (left) and cross-entropy (right) on the held-out set, per epoch.

    Several seeds show as their mean within a band from the lowest to the highest. The axes cover the
    second half of each training, where the models differ; what leaves them is stated. The title has
    the accuracies on the test set and the gain; ``title_extra`` follows as a line of its own.
    """
    with house_style():
        figure = Figure(figsize=(11, 5.6), layout="constrained")
        accuracy_axes, loss_axes = figure.add_subplot(1, 2, 1), figure.add_subplot(1, 2, 2)
        _draw(accuracy_axes, _curves(comparison, "accuracy", 100.0), ceiling=100.0, smallest=0.2)
        _draw(loss_axes, _curves(comparison, "cross_entropy", 1.0), ceiling=np.inf, smallest=0.005)
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
    accuracies = ",  ".join(
        f"{model} {_accuracy_text(comparison.summaries[model].accuracy)}" for model in comparison.summaries
    )
    found = comparison.distillation.gain
    gain = f"gain of distillation {gain_text(found)} points, {interval_text(found)}"
    return "\n".join(filter(None, [f"test accuracy:  {accuracies}", gain, extra]))


def _accuracy_text(accuracy: Interval) -> str:
    spread = "" if accuracy.sd is None else f" ± {accuracy.sd:.2f}"
    return f"{accuracy.mean:.2f}{spread} %"


def _curves(comparison: Comparison, figure: str, scale: float) -> list[_Curve]:
    curves = []
    for model in comparison.summaries:
        histories = [
            {point.epoch: scale * float(getattr(point, figure)) for point in result.history}
            for result in comparison.results
            if result.model == model
        ]
        # A mean over fewer and fewer seeds would jump where one stopped early.
        epochs = sorted(set(histories[0]).intersection(*histories[1:]))
        if epochs:
            values = np.array([[history[epoch] for epoch in epochs] for history in histories])
            curves.append(_Curve(model, np.array(epochs), values))
    return curves


def _draw(axes: Axes, curves: Sequence[_Curve], ceiling: float, smallest: float) -> None:
    axes.set_xlabel("epoch")
    axes.grid(True)
    for curve in curves:
        line = LINES[curve.model]
        axes.plot(
            curve.epochs,
            curve.mean,
            color=line.colour,
            linestyle=line.dashes,
            linewidth=1.8,
            marker=line.marker,
            markerfacecolor=line.face,
            markevery=max(1, len(curve.epochs) // 20),
            label=curve.model,
        )
        if len(curve.values) > 1:
            low, high = curve.values.min(axis=0), curve.values.max(axis=0)
            axes.fill_between(curve.epochs, low, high, color=line.colour, alpha=0.18, linewidth=0)
    if curves and curves[0].model == "teacher":
        final, colour = curves[0].mean[-1], LINES["teacher"].colour
        axes.axhline(final, color=colour, linewidth=1.4, linestyle=":", label="teacher's last epoch")
    if curves:
        _focus(axes, curves, ceiling, smallest)


def _focus(axes: Axes, curves: Sequence[_Curve], ceiling: float, smallest: float) -> None:
    """Limits the axes to the late epochs, at least ``smallest`` high, and says what leaves them."""
    longest = max(len(curve.epochs) for curve in curves)
    late = np.concatenate([curve.late(longest) for curve in curves])
    low, high = float(late.min()), float(late.max())
    margin = max(0.08 * (high - low), (smallest - (high - low)) / 2)
    axes.set_ylim(low - margin, high + margin)
    # Room for a marker at 100 % or at a loss of 0 is fine, figures beyond them are not.
    ticks = axes.get_yticks()
    axes.set_yticks(ticks[(ticks >= max(low - margin, 0)) & (ticks <= min(high + margin, ceiling))])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlim(0.5, max(int(curve.epochs[-1]) for curve in curves) + 0.5)
    means = np.concatenate([curve.mean for curve in curves])
    outside = [f"down to {means.min():.3g}"] if means.min() < low - margin else []
    outside += [f"up to {means.max():.3g}"] if means.max() > high + margin else []
    if outside:
        axes.set_title(
            f"off the axis: {', '.join(outside)}", loc="right", fontsize=9, fontweight="normal", color=GREY
        )
