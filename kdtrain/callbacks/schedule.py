"""Learning-rate schedules, and the callback that applies one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from kdtrain.engine.callback import Callback
from kdtrain.engine.events import BatchEnd
from kdtrain.engine.run import Run
from kdtrain.errors import UsageError, unknown_name_message

SCHEDULES = ("one_cycle", "cosine", "constant")

# As in common implementations of the paper: the rate rises for 30 % of the steps from 1/25 of the peak,
# then falls to 1/250,000 of it.
_WARM_UP, _START, _END = 0.3, 1 / 25, 1 / 250_000


class LearningRateSchedule(Callback):
    """Sets each step's rate by a closed formula of the step's number.

    It keeps no state from step to step, so a resumed fit continues exactly.

    Args:
        schedule: ``one_cycle`` (Smith, Topin 2017, "Super-Convergence", section 3; with cosine
            arms), ``cosine`` (Loshchilov, Hutter 2016, "SGDR", eq. 5, without restarts) or
            ``constant``.
        lr: the highest rate.
        restarts: numbers of epochs, rising, after which the schedule begins anew. Each part has a whole
            schedule of its own, so a fit that ends at one of them has the same rates as one that goes on.
    """

    def __init__(self, schedule: str, lr: float, restarts: Sequence[int] = ()) -> None:
        if schedule not in SCHEDULES:
            raise UsageError(unknown_name_message("schedule", schedule, SCHEDULES))
        self.schedule = schedule
        self.lr = lr
        self.restarts = restarts
        self._rates: list[float] = []

    def on_fit_start(self, run: Run) -> None:
        """Computes the rates of all steps, and sets the first."""
        ends = [*(epoch for epoch in self.restarts if epoch < run.epochs), run.epochs]
        self._rates = [
            learning_rate(self.schedule, self.lr, step, total)
            for begin, end in itertools.pairwise((0, *ends))
            for total in [(end - begin) * len(run.train)]
            for step in range(total)
        ]
        self._rates.append(self._rates[-1])  # after the last step
        self._set(run, run.step)

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Sets the next step's rate."""
        self._set(run, event.step)

    def _set(self, run: Run, step: int) -> None:
        rate = self._rates[step]
        for group in run.optimizer.param_groups:
            group["lr"] = rate


def learning_rate(schedule: str, peak: float, step: int, total_steps: int) -> float:
    """Returns the rate of the step that follows ``step`` steps, of ``total_steps`` in all."""
    done = min(step / max(total_steps - 1, 1), 1.0)
    if schedule == "constant":
        return peak
    if schedule == "cosine":
        return _between(peak, 0.0, done)
    if done < _WARM_UP:
        return _between(peak * _START, peak, done / _WARM_UP)
    return _between(peak, peak * _END, (done - _WARM_UP) / (1.0 - _WARM_UP))


def _between(start: float, end: float, fraction: float) -> float:
    """Returns the value at ``fraction``, 0 to 1, of half a cosine from ``start`` to ``end``."""
    return end + (start - end) * (1.0 + math.cos(math.pi * fraction)) / 2.0
