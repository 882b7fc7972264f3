"""Shows what a network confuses with what."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tensorboardX import summary

from kdtrain import Callback, EpochEnd, EventFile, FitEnd, Loader, Run, UsageError, predict_logits

Picture = npt.NDArray[np.uint8]
_MOST_CLASSES = 30  # whose names can still be read in a matrix
_LONGEST = 12  # letters of a name


class Confusion(Callback):
    """Shows the confusion matrix and the worst mistakes on the held-out images in TensorBoard.

    ``confusion/matrix`` has a row for each true class and a column for each predicted one;
    ``confusion/mistakes`` the wrongly recognised images, beginning with those where the network was
    surest, each with its label and what it was taken for.

    Args:
        every: epochs between two pictures; the last epoch always has one.
        images: how many mistakes are shown.
    """

    def __init__(self, every: int = 5, images: int = 40) -> None:
        for name, value in (("every", every), ("images", images)):
            if value < 1:
                raise UsageError(f"{name}={value}: it must be at least 1.")
        self.every = every
        self.images = images
        self.file: EventFile | None = None

    def on_fit_start(self, run: Run) -> None:
        """Opens an event file beside the run's own.

        A resumed run repeats what belongs to its last finished epoch, which a kill may have left out:
        always, because processes that share the images must all evaluate or none.
        """
        self.file = EventFile(run.directory, suffix=".confusion", up_to=run.step - 1)
        if run.resumed is not None:
            self.on_epoch_end(run, run.resumed)

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Draws if it is time to."""
        if event.epoch % self.every and event.epoch != run.epochs and not run.stop_reason:
            return
        logits = predict_logits(run.evaluated, run.validation)
        if self.file is None:
            return
        matrix = confusion_matrix(logits, run.validation.targets)
        pictures = {"matrix": draw_matrix(matrix, run.validation.classes)}
        wrong = worst_mistakes(logits, run.validation.targets, self.images)
        if len(wrong):
            pictures["mistakes"] = draw_mistakes(run.validation, wrong, logits.argmax(axis=1))
        for name, picture in pictures.items():
            self.file.add(summary.image(f"confusion/{name}", picture, dataformats="HWC"), event.step)
        self.file.flush()

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()


def confusion_matrix(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
) -> npt.NDArray[np.int64]:
    """Returns how many images of each class (row) were taken for each class (column)."""
    classes = logits.shape[1]
    pairs = targets * classes + logits.argmax(axis=1)
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def worst_mistakes(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], most: int
) -> npt.NDArray[np.int64]:
    """Returns the positions of wrongly recognised images, by falling probability of the mistake."""
    wrong = np.flatnonzero(logits.argmax(axis=1) != targets)
    scores = logits[wrong].astype(np.float64)
    sureness = 1.0 / np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1)
    worst: npt.NDArray[np.int64] = wrong[np.argsort(-sureness, kind="stable")[:most]]
    return worst


def draw_matrix(matrix: npt.NDArray[np.int64], names: Sequence[str]) -> Picture:
    """Returns the matrix as a picture; its colours are fractions of each row."""
    classes = len(matrix)
    figure = Figure(figsize=(6, 6), layout="constrained")
    axes = figure.subplots()
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if classes <= _MOST_CLASSES:
        short = _shortened(names)
        turn = 90 if max(map(len, short)) > 2 else 0
        axes.set_xticks(range(classes), short, rotation=turn, parse_math=False)
        axes.set_yticks(range(classes), short, parse_math=False)
        for (row, column), count in np.ndenumerate(matrix):
            if count:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", fontsize=7, color=colour)
    return _pixels(figure)


def draw_mistakes(
    loader: Loader, positions: npt.NDArray[np.int64], predicted: npt.NDArray[np.int64]
) -> Picture:
    """Returns the images at ``positions`` as one picture, each under its class and what it was taken for."""
    images = loader.inputs[positions].astype(np.float64)
    low, high = (edge(images, axis=(1, 2, 3), keepdims=True) for edge in (np.min, np.max))
    images = np.moveaxis((images - low) / np.maximum(high - low, 1e-12), 1, 3)
    columns = min(len(positions), 8)
    rows = -(-len(positions) // columns)
    names = _shortened(loader.classes)
    between = " > " if max(map(len, names)) <= 3 else "\n> "
    figure = Figure(figsize=(columns, (1.25 if between == " > " else 1.4) * rows), layout="constrained")
    for axes in (grid := figure.subplots(rows, columns, squeeze=False)).flat:
        axes.set_axis_off()
    for axes, position, image in zip(grid.flat, positions, images, strict=False):
        axes.imshow(image if image.shape[2] == 3 else image[..., 0], cmap="gray")
        title = between.join(names[number] for number in (loader.targets[position], predicted[position]))
        axes.set_title(title, fontsize=8, parse_math=False)
    return _pixels(figure)


def _shortened(names: Sequence[str]) -> list[str]:
    return [name if len(name) <= _LONGEST else name[: _LONGEST - 1] + "…" for name in names]


def _pixels(figure: Figure) -> Picture:
    canvas = FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")  # a name in another script
        canvas.draw()  # type: ignore[no-untyped-call]
    return np.array(canvas.buffer_rgba())[..., :3]  # type: ignore[no-untyped-call]
