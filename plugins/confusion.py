"""The confusion matrix, and the images that a network gets wrong."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from kdtrain import EpochEnd, EventFileObserver, Loader, Run, UsageError, predict_logits

Image = npt.NDArray[np.uint8]
_MOST_CLASSES = 30  # with more, their names cannot be read in the matrix
_LONGEST = 12  # letters of a name


class Confusion(EventFileObserver):
    """Shows the confusion matrix and the worst mistakes on the held-out images in TensorBoard.

    ``confusion/matrix`` has a row for each true class and a column for each predicted class.
    ``confusion/mistakes`` shows misclassified images with true and predicted class, by falling probability
    of the predicted class.

    Args:
        every: epochs between two drawings; the last epoch always has one.
        images: number of mistakes to show.
    """

    suffix = ".confusion"

    def __init__(self, every: int = 5, images: int = 40) -> None:
        for name, value in (("every", every), ("images", images)):
            if value < 1:
                raise UsageError(f"{name}={value}: it must be at least 1.")
        self.every = every
        self.images = images

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Draws if it is due."""
        if event.epoch % self.every and event.epoch != run.epochs and not run.stop_reason:
            return
        logits = predict_logits(run.evaluated, run.validation)
        matrix = confusion_matrix(logits, run.validation.targets)
        self.add_image("confusion/matrix", draw_matrix(matrix, run.validation.classes), event.step)
        mistakes = worst_mistakes(logits, run.validation.targets, self.images)
        if len(mistakes):
            image = draw_mistakes(run.validation, mistakes, logits.argmax(axis=1))
            self.add_image("confusion/mistakes", image, event.step)


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


def worst_mistakes(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], most: int
) -> npt.NDArray[np.int64]:
    """Returns the positions of misclassified images, by falling probability of the predicted class.

    Args:
        logits: (N, C) float32.
        targets: labels, (N,) int64.
        most: the largest number of positions to return.

    Returns:
        (M,) int64, M at most ``most``.
    """
    wrong = np.flatnonzero(logits.argmax(axis=1) != targets)
    scores = logits[wrong].astype(np.float64)
    probability = 1.0 / np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1)
    worst: npt.NDArray[np.int64] = wrong[np.argsort(-probability, kind="stable")[:most]]
    return worst


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
    return _pixels(figure)


def draw_mistakes(
    loader: Loader, positions: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]
) -> Image:
    """Draws the images at ``positions``, each under its true and its predicted class.

    Args:
        loader: the images.
        positions: which of them to draw, (M,) int64.
        predicted: the predicted class of every image of the loader, (N,) int64.

    Returns:
        (H, W, 3) uint8.
    """
    images = loader.inputs[positions].astype(np.float64)
    low = images.min(axis=(1, 2, 3), keepdims=True)
    high = images.max(axis=(1, 2, 3), keepdims=True)
    images = np.moveaxis((images - low) / np.maximum(high - low, 1e-12), 1, 3)
    columns = min(len(positions), 8)
    rows = -(-len(positions) // columns)
    names = _shortened(loader.classes)
    one_line = max(map(len, names)) <= 3
    figure = Figure(figsize=(columns, (1.25 if one_line else 1.4) * rows), layout="constrained")
    for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.set_axis_off()
    for axes, position, image in zip(grid.flat, positions, images, strict=False):
        axes.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray")
        separator = " > " if one_line else "\n> "
        title = f"{names[loader.targets[position]]}{separator}{names[predicted[position]]}"
        axes.set_title(title, fontsize=8, parse_math=False)
    return _pixels(figure)


def _shortened(names: Sequence[str]) -> list[str]:
    return [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…" for name in names]


def _pixels(figure: Figure) -> Image:
    """Returns a drawn figure, (H, W, 3) uint8."""
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in another script
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
