"""The confusion matrix."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdtrain import EpochEnd, EvalEnd, EventFileObserver, Run, at_least, predict_logits

Image = npt.NDArray[np.uint8]
_MOST_CLASSES = 30  # with more, their names cannot be read in the matrix
_LONGEST = 12  # letters of a name


class Confusion(EventFileObserver):
    """Shows the confusion matrix on the held-out images in TensorBoard.

    ``confusion/matrix`` has a row for each true class and a column for each predicted class.

    Args:
        every: epochs between two drawings; the last epoch always has one.
    """

    suffix = ".confusion"

    def __init__(self, every: int = 5) -> None:
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
        """Draws if it is due."""
        if event.epoch % self.every == 0 or event.epoch == run.epochs or run.stop_reason:
            matrix = confusion_matrix(self.logits, run.validation.targets)
            self.add_image("confusion/matrix", draw_matrix(matrix, run.validation.classes), event.step)


def confusion_matrix(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Returns the number of images of each true class (row) and predicted class (column).

    Args:
        logits: (N, C) float32.
        targets: labels, (N,) int64.

    Returns:
        (C, C) int64.
    """
    classes = logits.shape[1]
    pairs = targets * classes + logits.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def draw_matrix(matrix: npt.NDArray[np.int64], names: Sequence[str]) -> Image:
    """Draws a confusion matrix, coloured by the fractions of each row.

    Args:
        matrix: (C, C) int64.
        names: of the classes.

    Returns:
        (H, W, 3) uint8.
    """
    classes = len(matrix)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if classes <= _MOST_CLASSES:
        labels = _shortened(names)
        rotation = 90 if max(map(len, labels)) > 2 else 0
        axes.set_xticks(range(classes), labels, rotation=rotation, parse_math=False)
        axes.set_yticks(range(classes), labels, parse_math=False)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if fractions[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in another script
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]


def _shortened(names: Sequence[str]) -> list[str]:
    return [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…" for name in names]
