"""The callback that writes a run's curves for TensorBoard."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdtrain.callbacks.event_file_observer import EventFileObserver
from kdtrain.callbacks.mistakes import Mistake, confident_mistakes, draw_mistakes
from kdtrain.data.loader import Loader
from kdtrain.engine.events import BatchEnd, EpochEnd, EvalEnd, FitEnd, Status
from kdtrain.engine.predict import predict_logits
from kdtrain.engine.run import Run

_DRAWINGS = 10
"""TensorBoard shows ten images of a tag and drops others at random."""


class TensorBoard(EventFileObserver):
    """Writes scalars over optimizer steps, images of mistakes, and the configuration as text.

    The losses and the learning rate are written every few steps; accuracy, cross-entropy and images per
    second once an epoch, and the accuracy of each class if there are at most 30.

    ``val/mistakes`` shows up to 8 held-out images that the network gets wrong, those first of whose class it
    is most certain. It is drawn after up to ten evaluations, evenly spread over the fit, because TensorBoard
    shows no more, and after the last one.

    Args:
        config: the resolved configuration (TOML), shown as text; left out when empty.
        every: steps between two points of the losses.
    """

    suffix = ""

    def __init__(self, config: str = "", every: int = 50) -> None:
        self.config = config
        self.every = every
        self._undrawn: list[Mistake] = []

    def on_fit_start(self, run: Run) -> None:
        """Opens the event file; writes the configuration, unless the file of a resumed run holds it."""
        from tensorboardX import summary

        super().on_fit_start(run)
        if self.config and not self.file.earlier:
            self.file.add(summary.text("config", f"```toml\n{self.config.strip()}\n```"))
            self.file.flush()

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Writes the losses at the first step and at every ``every``-th."""
        if event.step == 1 or event.step % self.every == 0:
            losses = {f"loss/{name}": loss.item() for name, loss in event.losses.items()}
            self.add_scalars({**losses, "learning_rate": event.learning_rate}, event.step)

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Writes the evaluation against the same steps, and the mistakes when it is their turn."""
        evaluation = {name: value for name, value in event.metrics.items() if name.startswith("val/")}
        self.add_scalars(evaluation, event.step)

        of_classes = accuracies_of_classes(event.logits, run.validation)
        self.add_scalars(
            {f"val_class_accuracy/{name}": value for name, value in of_classes.items()}, event.step
        )
        self._undrawn = confident_mistakes(event.logits, run.validation.targets)
        if event.epoch == run.epochs or event.epoch % -(-run.epochs // _DRAWINGS) == 0:
            self._draw(run.validation, event.step)

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Writes the throughput."""
        self.add_scalars({"images_per_second": event.images_per_second}, event.step)

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Draws the last mistakes of a fit that was stopped early; closes the file.

        A fit may be killed between its last evaluation and this drawing. When it is resumed, it evaluates
        nothing more, so its logits are computed here.
        """
        if event.status is Status.STOPPED:
            if run.resumed is not None and run.resumed.step == run.step:
                logits = predict_logits(run.evaluated, run.validation)
                self._undrawn = confident_mistakes(logits, run.validation.targets)
            self._draw(run.validation, event.step)
        super().on_fit_end(run, event)

    def _draw(self, loader: Loader, step: int) -> None:
        """Draws the mistakes of the last evaluation, unless that is done or there are none."""
        if self._undrawn:
            self.add_image("val/mistakes", draw_mistakes(loader, self._undrawn), step)
            self._undrawn = []


_MOST_CLASSES = 30  # more curves than anyone looks at


def accuracies_of_classes(logits: npt.NDArray[np.float32], loader: Loader) -> dict[str, float]:
    """Returns the fraction, 0..1, of each class's images that are recognised, by the class's name.

    A class without images is left out. There is no entry if there are more than 30 classes.

    Args:
        logits: (N, C) float32.
        loader: the images that they are about.
    """
    classes = logits.shape[1]
    if classes > _MOST_CLASSES:
        return {}
    recognised = loader.targets[logits.argmax(axis=1) == loader.targets]
    hits = np.bincount(recognised, minlength=classes)
    images = np.bincount(loader.targets, minlength=classes)
    return {loader.classes[i]: float(hits[i] / images[i]) for i in np.flatnonzero(images)}
