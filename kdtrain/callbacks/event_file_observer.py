"""The base of callbacks that write curves and images to a TensorBoard event file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from kdtrain.engine.callback import Callback
from kdtrain.engine.events import FitEnd
from kdtrain.engine.run import Run
from kdtrain.store.event_file import EventFile


class EventFileObserver(Callback):
    """A callback with an event file of its own in the run's directory.

    The file is opened in ``on_fit_start`` and closed in ``on_fit_end``. Every point is in the file when the
    method that adds it returns, so a kill loses no point of an epoch that the checkpoint holds.

    A resumed run keeps the points up to its last finished epoch. A kill may have come before that epoch's
    ``on_epoch_end``, so ``on_fit_start`` calls it again, in every process: those that share the images
    must all call ``predict_logits``, or none. Points that the file holds already are not added twice.

    A subclass that overrides ``on_fit_start`` or ``on_fit_end`` also calls the method of this class. It
    calls ``on_fit_start`` when everything that its ``on_epoch_end`` needs is prepared.

    Attributes:
        suffix: the end of the file's name, such as ``.calibration``. Every subclass sets its own: two files
            with one suffix in a directory replace each other.
        file: the event file, from ``on_fit_start`` on.
    """

    suffix: ClassVar[str]
    file: EventFile

    def on_fit_start(self, run: Run) -> None:
        """Opens the file; writes what the last finished epoch of a resumed run lacks."""
        self.file = EventFile(run.directory, self.suffix, up_to=run.step)
        if run.resumed is not None:
            self.on_epoch_end(run, run.resumed)

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Closes the file."""
        self.file.close()

    def add_scalars(self, values: Mapping[str, float], step: int) -> None:
        """Adds a point to each of several curves.

        Args:
            values: the values by tag, such as ``calibration/ece``.
            step: optimizer steps made so far.

        Raises:
            KdtrainError: the file cannot be written.
        """
        earlier = self.file.earlier
        if new := {tag: value for tag, value in values.items() if (tag, step) not in earlier}:
            self.file.add_scalars(new, step)
            self.file.flush()

    def add_image(self, tag: str, image: npt.NDArray[np.uint8], step: int) -> None:
        """Adds an image.

        Args:
            tag: its name, such as ``confusion/matrix``.
            image: (H, W, 3) uint8, red, green and blue.
            step: optimizer steps made so far.

        Raises:
            KdtrainError: the file cannot be written.
        """
        from tensorboardX import summary  # imports protobuf: not for every command

        if (tag, step) not in self.file.earlier:
            self.file.add(summary.image(tag, image, dataformats="HWC"), step)
            self.file.flush()

    def add_histogram(self, tag: str, values: npt.NDArray[np.float32], step: int) -> None:
        """Adds the distribution of an array's values, in 30 equal intervals.

        Args:
            tag: its name, such as ``weights/fc1.weight``.
            values: of any shape, at least one; those that are not finite are left out.
            step: optimizer steps made so far.

        Raises:
            KdtrainError: the file cannot be written.
        """
        from tensorboardX import summary

        finite = values[np.isfinite(values)].astype(np.float64)
        if finite.size and (tag, step) not in self.file.earlier:
            counts, edges = np.histogram(finite, bins=30)
            figures = (finite.min(), finite.max(), finite.size, finite.sum(), (finite**2).sum())
            self.file.add(summary.histogram_raw(tag, *figures, edges[1:].tolist(), counts.tolist()), step)
            self.file.flush()
