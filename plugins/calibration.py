"""Calibration: how far a network's probabilities are from its accuracy, as a curve and as a diagram."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdtrain import (
    EpochEnd,
    EvalEnd,
    EventFileObserver,
    Reliability,
    Run,
    at_least,
    predict_logits,
    reliability,
)


class Calibration(EventFileObserver):
    """Shows the calibration error in TensorBoard, and a reliability diagram every few epochs.

    Guo et al., "On Calibration of Modern Neural Networks" (2017), section 2: held-out images are
    sorted into bins by the probability of the predicted class; ``calibration/ece`` is the mean distance
    between a bin's accuracy and its mean probability, weighted by the bin's images.

    Args:
        bins: number of bins of equal width over 0 to 1.
        every: epochs between two diagrams; the last epoch always has one.
    """

    suffix = ".calibration"

    def __init__(self, bins: int = 15, every: int = 5) -> None:
        self.bins = at_least("bins", bins, 1)
        self.every = at_least("every", every, 1)

    def on_fit_start(self, run: Run) -> None:
        """Computes the logits of a resumed run's last epoch again, and opens the file."""
        if run.resumed is not None:
            self.logits = predict_logits(run.evaluated, run.validation)
        super().on_fit_start(run)

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Keeps the logits, (N, C) float32."""
        self.logits = event.logits

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Measures the error; draws the diagram if it is due."""
        measured = reliability(self.logits, run.validation.targets, self.bins)
        self.add_scalars({"calibration/ece": measured.error}, event.step)
        if event.epoch % self.every == 0 or event.epoch == run.epochs or run.stop_reason:
            self.add_image("calibration/reliability", diagram(measured), event.step)


def diagram(measured: Reliability) -> npt.NDArray[np.uint8]:
    """Returns the reliability diagram, (H, W, 3) uint8."""
    bins = len(measured.counts)
    figure = Figure(figsize=(5, 5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    centres = (np.arange(bins) + 0.5) / bins
    upper.bar(centres, measured.accuracy, 1 / bins, edgecolor="white", label="accuracy")
    filled = measured.counts > 0
    upper.plot(measured.confidence[filled], measured.confidence[filled], "k_", label="mean probability")
    upper.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"calibration error {measured.error:.2%}")
    upper.legend(loc="upper left")
    lower.bar(centres, measured.counts, 1 / bins, edgecolor="white")
    lower.set(xlabel="probability of the predicted class", ylabel="images")
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
