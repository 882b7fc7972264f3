"""The callback that shows a progress bar, and prints lines with the figures of epochs."""

from __future__ import annotations

import logging

from kdtrain.engine.callback import Callback
from kdtrain.engine.events import BatchEnd, EpochEnd, FitEnd, Status
from kdtrain.engine.run import Run
from kdtrain.metrics.names import ACCURACY, CROSS_ENTROPY
from kdtrain.runtime.bars import Bar, are_drawn, count_epochs, is_redrawn, progress_bar

logger = logging.getLogger(__name__)

_REFRESH_STEPS = 20
_LINES = 10  # of a fit, without a terminal


class Progress(Callback):
    """Shows a bar over all epochs, and prints lines with loss, accuracy and seconds so far.

    A terminal or a notebook gets the bar, and one line at the end of the fit. Elsewhere there is a line at
    each tenth of the way, which ends with the time that the fit still takes. With messages of the level
    DEBUG every epoch has its line.

    Args:
        name: name of the network in the lines, such as ``student``.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._bar: Bar | None = None
        self._epochs = 0  # trained by this process
        self._seconds = 0.0
        self._accuracy = ""
        self._line = ""  # of the last epoch, until it is printed

    def on_fit_start(self, run: Run) -> None:
        """Starts the clock of the first epoch."""
        self._epochs, self._seconds, self._accuracy, self._line = 0, 0.0, "", ""
        count_epochs(skipped=run.epoch)

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Moves the bar; shows the loss every few steps."""
        if not are_drawn():
            return
        if self._bar is None:
            steps = (run.epochs - run.epoch + 1) * len(run.train)
            self._bar = progress_bar(self._description(run.epoch, run), steps, "step")
        self._bar.update()
        if event.step % _REFRESH_STEPS == 0:
            self._show(self._bar, event.losses["total"].item())

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Prints the epoch's line if it is due, short enough for a terminal of 80 columns."""
        count_epochs(trained=1)
        loss, accuracy = event.metrics["loss/total"], event.metrics[ACCURACY]
        self._accuracy = f"accuracy {accuracy:.2%}"
        is_last = event.epoch == run.epochs
        if is_last:
            self._close()
        elif self._bar is not None:
            self._bar.set_description_str(self._description(event.epoch + 1, run), refresh=False)
            self._show(self._bar, loss)
        self._epochs += 1
        self._seconds += event.seconds + event.eval_seconds
        seconds = self._seconds / self._epochs * (run.epochs - event.epoch)
        has_left = seconds >= 1 and not is_redrawn()
        left = f"  about {Bar.format_interval(seconds)} left" if has_left else ""
        self._line = (
            f"{self.name:<12} {event.epoch:>{len(str(run.epochs))}}/{run.epochs}"
            f"  loss {loss:.4f}  {self._accuracy}"
            f"  cross-entropy {event.metrics[CROSS_ENTROPY]:.4f}"
            f"  {self._seconds:.{0 if self._seconds >= 10 else 1}f} s{left}"
        )
        is_tenth = event.epoch * _LINES // run.epochs > (event.epoch - 1) * _LINES // run.epochs
        if is_last or (is_tenth and not is_redrawn()) or logger.isEnabledFor(logging.DEBUG):
            self._print_line()
        logger.debug(
            f"{self.name}: {event.images_per_second:,.0f} images/s, learning rate {event.learning_rate:.3g}, "
            f"evaluation {event.eval_seconds:.1f} s"
        )

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Removes the bar; prints why a fit was stopped. The caller prints errors."""
        self._close()
        count_epochs(skipped=run.epochs - event.epoch)
        if event.status is Status.STOPPED:
            self._print_line()
            logger.info(f"{self.name}: stopped after epoch {event.epoch}: {event.reason}")

    def _description(self, epoch: int, run: Run) -> str:
        return f"{self.name} {epoch}/{run.epochs}"

    def _show(self, bar: Bar, loss: float) -> None:
        bar.set_postfix_str(", ".join(filter(None, (f"loss {loss:.4f}", self._accuracy))), refresh=False)

    def _print_line(self) -> None:
        if self._line:
            logger.info(self._line)
            self._line = ""

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
