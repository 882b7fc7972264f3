"""Ends a fit whose loss is no longer a number."""

from __future__ import annotations

import math

from kdtrain.callback import Callback
from kdtrain.errors import KdtrainError
from kdtrain.events import BatchEnd
from kdtrain.run import Run


class StopOnNonFinite(Callback):
    """Fails the fit at the first step whose loss is infinite or not a number.

    It raises, instead of asking for a stop, because the weights are spoilt by then: they must not
    be evaluated, nor saved over the last good ones.
    """

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Looks at the total; at the terms only when it is bad.

        Reading it waits for the step to be computed, which also keeps OneFlow's queue short, so
        that Ctrl-C is answered within a step.
        """
        if math.isfinite(event.losses["total"].item()):
            return
        values = ", ".join(f"{name} = {loss.item():g}" for name, loss in event.losses.items())
        kept = "The last good checkpoint is kept" if event.epoch > 1 else "There is no checkpoint yet"
        raise KdtrainError(
            f"the loss is not finite at step {event.step} (epoch {event.epoch}): {values}. "
            f"{kept}; try a lower --lr than {event.learning_rate:g}."
        )
