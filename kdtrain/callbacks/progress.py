"""The callback that shows a progress bar, and prints a line per epoch."""

from __future__ import annotations

import logging

from kdtrain.engine.callback import Callback
from kdtrain.engine.events import BatchEnd, EpochEnd, FitEnd, Status
from kdtrain.engine.run import Run
from kdtrain.metrics.names import ACCURACY, CROSS_ENTROPY
from kdtrain.runtime import time_left
from kdtrain.runtime.console import is_drawn_by_parent, is_terminal, progress_bar
from kdtrain.runtime.screen import Bar

logger = logging.getLogger(__name__)

_REFRESH_STEPS = 20


class Progress(Callback):
    """Shows a bar over the steps of each epoch on a terminal, and prints one line per epoch everywhere.

    Without a terminal the line ends with the time that the whole command still takes. On a terminal it is
    under the bars, or in the bar of a fit that this process carries out without a parent.

    Args:
        name: name of the network in the lines, such as ``student``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._bar: Bar | None = None

    def on_fit_start(self, run: Run) -> None:
        """Starts the clock of the first epoch."""
        time_left.note_begin(run.epoch)

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Moves the bar; shows the loss every few steps."""
        if self._bar is None:
            self._bar = progress_bar(f"{self.name} {run.epoch}/{run.epochs}", len(run.train), "step")
        self._bar.update()
        if not self._bar.disable and event.step % _REFRESH_STEPS == 0:
            left = "" if is_drawn_by_parent() else time_left.fit_text()
            loss = f"loss {event.losses['total'].item():.4f}"
            self._bar.set_postfix_str(f"{loss}, {left}" if left else loss, refresh=False)

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Prints the epoch's line, short enough for a terminal of 80 columns."""
        self._close()
        time_left.note_epoch()
        left = "" if is_terminal() else time_left.fit_text()
        width = len(str(run.epochs))
        logger.info(
            f"{self.name:<12} {event.epoch:>{width}}/{run.epochs}"
            f"  loss {event.metrics['loss/total']:.4f}"
            f"  accuracy {event.metrics[ACCURACY]:.2%}"
            f"  cross-entropy {event.metrics[CROSS_ENTROPY]:.4f}"
            f"  {event.seconds + event.eval_seconds:.1f} s{left and f'  {left}'}"
        )
        logger.debug(
            f"{self.name}: {event.images_per_second:,.0f} images/s, learning rate {event.learning_rate:.3g}, "
            f"evaluation {event.eval_seconds:.1f} s"
        )

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Removes the bar; prints why a fit was stopped. The caller prints errors."""
        self._close()
        time_left.note_end()
        if event.status is Status.STOPPED:
            logger.info(f"{self.name}: stopped after epoch {event.epoch}: {event.reason}")

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
