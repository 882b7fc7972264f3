"""The callback that shows a progress bar, and prints a line per epoch."""

from __future__ import annotations

import logging

from tqdm import tqdm

from kdtrain.engine.callback import Callback
from kdtrain.engine.events import BatchEnd, EpochEnd, FitEnd, Status
from kdtrain.engine.run import Run
from kdtrain.metrics.names import ACCURACY, CROSS_ENTROPY
from kdtrain.runtime.console import progress_bar

logger = logging.getLogger(__name__)

_REFRESH_STEPS = 20


class Progress(Callback):
    """Shows a bar over the steps of each epoch on a terminal, and prints one line per epoch everywhere.

    Args:
        name: name of the network in the lines, such as ``student``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._bar: tqdm[None] | None = None

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Moves the bar; shows the loss every few steps."""
        if self._bar is None:
            self._bar = progress_bar(f"{self.name} {run.epoch}/{run.epochs}", len(run.train), "step")
        self._bar.update()
        if not self._bar.disable and event.step % _REFRESH_STEPS == 0:
            self._bar.set_postfix_str(f"loss {event.losses['total'].item():.4f}", refresh=False)

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Prints the epoch's line, short enough for a terminal of 80 columns."""
        self._close()
        width = len(str(run.epochs))
        logger.info(
            f"{self.name:<12} {event.epoch:>{width}}/{run.epochs}"
            f"  loss {event.metrics['loss/total']:.4f}"
            f"  accuracy {event.metrics[ACCURACY]:.2%}"
            f"  cross-entropy {event.metrics[CROSS_ENTROPY]:.4f}"
            f"  {event.seconds + event.eval_seconds:.1f} s"
        )

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Removes the bar; prints why a fit was stopped. The caller prints errors."""
        self._close()
        if event.status is Status.STOPPED:
            logger.info(f"{self.name}: stopped after epoch {event.epoch}: {event.reason}")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
