"""Ends a fit whose loss is no longer a number."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kdtrain.engine.callback import Callback
from kdtrain.engine.events import BatchEnd
from kdtrain.engine.run import Run
from kdtrain.errors import KdtrainError
from kdtrain.runtime import flow

_TOGETHER = 8  # steps


class StopOnNonFinite(Callback):
    """Fails the fit, naming the first step whose loss is infinite or not a number.

    It raises, instead of asking for a stop, because the weights are spoilt by then: they must not
    be saved over the last good ones.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[int, float, Mapping[str, flow.Tensor]]] = []
        self._batches = 0

    def on_fit_start(self, run: Run) -> None:
        """Begins anew."""
        self._unread, self._batches = [], len(run.train)

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Reads the losses of a few steps together, and those of an epoch before it is evaluated.

        Between two steps the processor has forgotten how to read a loss: reading eight in a row takes
        little longer than reading one. It also waits for these steps to be computed, which keeps
        OneFlow's queue short, so that Ctrl-C is answered soon.
        """
        self._unread.append((event.step, event.learning_rate, event.losses))
        last = event.step == event.epoch * self._batches or run.stopping
        if last or len(self._unread) == _TOGETHER:
            self._read(run)

    def _read(self, run: Run) -> None:
        """Looks at the totals; at the terms only when one is bad.

        Should a later callback cut the epoch short in the very step that spoils the weights, the
        evaluation refuses what such a network puts out.
        """
        for step, learning_rate, losses in self._unread:
            if math.isfinite(losses["total"].item()):
                continue
            values = ", ".join(f"{name} = {loss.item():g}" for name, loss in losses.items())
            kept = "The last good checkpoint is kept" if run.epoch > 1 else "There is no checkpoint yet"
            raise KdtrainError(
                f"the loss is not finite at step {step} (epoch {run.epoch}): {values}. "
                f"{kept}; try a lower --lr than {learning_rate:g}."
            )
        self._unread.clear()
