"""Writes what TensorBoard shows."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtrain.callback import Callback
from kdtrain.events import BatchEnd, EpochEnd, EvalEnd, FitEnd
from kdtrain.run import Run

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class TensorBoard(Callback):
    """Scalars over optimizer steps, and the configuration as text.

    The losses and the learning rate are written every few steps, accuracy, cross-entropy and
    images per second once an epoch.

    Args:
        config: the resolved configuration, shown as text; left out when empty.
        every: steps between two points of the losses.
    """

    def __init__(self, config: str = "", every: int = 50) -> None:
        self.config = config
        self.every = every
        self._writer: SummaryWriter | None = None

    def on_fit_start(self, run: Run) -> None:
        """Opens the event file in the run's directory."""
        self._writer = open_writer(run.directory)
        if self.config:
            self._writer.add_text("config", f"```toml\n{self.config}\n```", 0)

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Writes the losses at the first step and at every ``every``-th."""
        if event.step == 1 or event.step % self.every == 0:
            for name, loss in event.losses.items():
                self._scalar(f"loss/{name}", loss.item(), event.step)
            self._scalar("learning_rate", event.learning_rate, event.step)

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Writes the evaluation against the same steps."""
        for name, value in event.metrics.items():
            if name.startswith("eval/"):
                self._scalar(name, value, event.step)

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Writes the throughput, and brings the file up to date on disk."""
        self._scalar("images_per_second", event.images_per_second, event.step)
        if self._writer is not None:
            self._writer.flush()

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Closes the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _scalar(self, tag: str, value: float, step: int) -> None:
        if self._writer is not None:
            self._writer.add_scalar(tag, value, step)


def open_writer(directory: Path, suffix: str = "") -> SummaryWriter:
    """Returns a writer for one more event file in ``directory``."""
    from tensorboardX import SummaryWriter  # imports protobuf: not needed by most commands

    return SummaryWriter(logdir=str(directory), filename_suffix=suffix)


def write_results(
    directory: Path, hparams: Mapping[str, Any], metrics: Mapping[str, float], step: int
) -> None:
    """Adds a finished run's final metrics and its line in the HParams tab."""
    from tensorboardX.summary import hparams as hparams_summaries

    writer = open_writer(directory, ".results")
    try:
        for name, value in metrics.items():
            writer.add_scalar(name, value, step)
        # add_hparams would make a run of its own, under a time stamp: these belong to this one.
        plain = {
            name: " ".join(value) if isinstance(value, list) else value for name, value in hparams.items()
        }
        for summary in hparams_summaries(plain, dict(metrics)):
            writer.file_writer.add_summary(summary)
    finally:
        writer.close()


def write_picture(directory: Path, tag: str, png: Path) -> None:
    """Adds a picture to the images of the run in ``directory``."""
    import numpy as np
    from PIL import Image

    writer = open_writer(directory, ".picture")
    try:
        with Image.open(png) as image:
            writer.add_image(tag, np.asarray(image.convert("RGB")), 0, dataformats="HWC")
    finally:
        writer.close()
