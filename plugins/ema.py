"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

from kdtrain import BatchEnd, Callback, Objective, Run, UsageError, flow


class Ema(Callback):
    """Evaluates and keeps the average of the weights over the last steps instead of the last weights.

    Polyak, Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992), with weights that
    fall off exponentially. Training itself goes on as it would; only what is measured and saved as the
    best model are the averages. The early steps, when there is little to average over, count less:
    the decay is at most step / (step + 9).

    Args:
        decay: the part of the average that each step keeps, from 0 up to, not including, 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise UsageError(f"decay={decay}: it must be from 0 to below 1.")
        self.decay = decay

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective with a copy of the student that stands in for it."""
        self.average = copy.deepcopy(objective.student.network).eval()
        for parameter in self.average.parameters():
            parameter.requires_grad_(False)
        return objective.evaluate_with(self.average)

    def on_fit_start(self, run: Run) -> None:
        """Pairs each average with what it is of; statistics, such as a batch norm's, are copied."""
        self.pairs = list(zip(self.average.parameters(), run.model.parameters(), strict=True))
        self.copied = list(zip(self.average.buffers(), run.model.buffers(), strict=True))

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Moves the averages towards the weights."""
        keep = min(self.decay, event.step / (event.step + 9))
        with flow.no_grad():
            for average, weight in self.pairs:
                average.add_((weight - average) * (1.0 - keep))
            for average, value in self.copied:
                average.copy_(value)
