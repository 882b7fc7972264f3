"""The callback that fails a fit whose loss is infinite or NaN."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kdtrain.engine.callback import Callback
from kdtrain.engine.events import BatchEnd
from kdtrain.engine.run import Run
from kdtrain.errors import NonFiniteError
from kdtrain.runtime import flow

_STEPS_AT_ONCE = 8


class StopOnNonFinite(Callback):
    """Fails the fit at the first step whose loss is infinite or NaN, and names the step.

    It raises instead of calling ``run.stop``, because the weights are damaged by then and must not
    replace the last good ones in the checkpoint.
    """

    def __init__(self) -> None:
        self._unread: list[tuple[int, float, Mapping[str, flow.Tensor]]] = []
        self._batches = 0

    def on_fit_start(self, run: Run) -> None:
        """Clears the state of an earlier fit."""
        self._unread, self._batches = [], len(run.train)

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Reads the losses of several steps together, and the rest of an epoch's before its evaluation.

        Reading a loss is slow when the CPU caches are cold, as they are between two steps. Reading eight in
        a row takes little longer than reading one. Reading also waits for these steps to be computed,
        which keeps OneFlow's queue short, so that Ctrl-C takes effect soon.
        """
        self._unread.append((event.step, event.learning_rate, event.losses))
        last = event.step == event.epoch * self._batches or run.stopping
        if last or len(self._unread) == _STEPS_AT_ONCE:
            self._read(run)

    def _read(self, run: Run) -> None:
        """Checks the totals; reads the terms only for the message.

        If a later callback ends the epoch in the very step that damages the weights, that step is not
        read here. The evaluation then refuses the network's outputs, which are not finite.
        """
        for step, learning_rate, losses in self._unread:
            if math.isfinite(losses["total"].item()):
                continue
            values = ", ".join(f"{name} = {loss.item():g}" for name, loss in losses.items())
            kept = "The last good checkpoint is kept" if run.epoch > 1 else "There is no checkpoint yet"
            raise NonFiniteError(
                f"the loss is not finite at step {step} (epoch {run.epoch}): {values}. "
                f"{kept}; try a lower --lr than {learning_rate:g}."
            )
        self._unread.clear()
