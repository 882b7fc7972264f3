"""Watches whether a network is as sure as it is right."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboardX import summary

from kdtrain import (
    Callback,
    EpochEnd,
    EventFile,
    FitEnd,
    Reliability,
    Run,
    UsageError,
    predict_logits,
    reliability,
)


class Calibration(Callback):
    """Shows the calibration error, and now and then a reliability diagram, in TensorBoard.

    Guo et al., "On Calibration of Modern Neural Networks" (2017), section 2: held-out images are
    sorted into bins by the probability of the predicted class; ``calibration/ece`` is the mean distance
    between a bin's accuracy and its mean probability, weighted by the bin's images.

    Args:
        bins: of equal width, over 0 to 1.
        every: epochs between two diagrams; the last epoch always has one.
    """

    def __init__(self, bins: int = 15, every: int = 5) -> None:
        for name, value in (("bins", bins), ("every", every)):
            if value < 1:
                raise UsageError(f"{name}={value}: it must be at least 1.")
        self.bins = bins
        self.every = every
        self.file: EventFile | None = None

    def on_fit_start(self, run: Run) -> None:
        """Opens an event file beside the run's own.

        A resumed run repeats what belongs to its last finished epoch, which a kill may have left out:
        always, because processes that share the images must all evaluate or none.
        """
        self.file = EventFile(run.directory, suffix=".calibration", up_to=run.step - 1)
        if run.resumed is not None:
            self.on_epoch_end(run, run.resumed)

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Measures; draws if it is time to."""
        found = reliability(predict_logits(run.evaluated, run.validation), run.validation.targets, self.bins)
        if self.file is None:
            return
        self.file.add_scalars({"calibration/ece": found.error}, event.step)
        if event.epoch % self.every == 0 or event.epoch == run.epochs or run.stop_reason:
            picture = summary.image("calibration/reliability", diagram(found), dataformats="HWC")
            self.file.add(picture, event.step)
        self.file.flush()

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()


def diagram(found: Reliability) -> npt.NDArray[np.uint8]:
    """Returns the picture, (H, W, 3)."""
    bins = len(found.counts)
    figure = Figure(figsize=(5, 5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    places = (np.arange(bins) + 0.5) / bins
    upper.bar(places, found.accuracy, 1 / bins, edgecolor="white", label="accuracy")
    filled = found.counts > 0
    upper.plot(found.confidence[filled], found.confidence[filled], "k_", label="mean probability")
    upper.plot([0, 1], [0, 1], color="grey", linewidth=1, linestyle="--")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=f"calibration error {found.error:.2%}")
    upper.legend(loc="upper left")
    lower.bar(places, found.counts, 1 / bins, edgecolor="white")
    lower.set(xlabel="probability of the predicted class", ylabel="images")
    canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
