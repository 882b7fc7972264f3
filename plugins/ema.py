"""Exponential moving average of the weights."""

from __future__ import annotations

import copy

from kdtrain import BatchEnd, Callback, Objective, Run, UsageError, flow


class Ema(Callback):
    """Evaluates and keeps the average of the weights over the last steps instead of the last weights.

    Polyak, Juditsky, "Acceleration of Stochastic Approximation by Averaging" (1992), with exponentially
    falling weights of the steps. Training is the same as without it; only the evaluation and the best model
    use the averages. The decay is at most step / (step + 9), so that the initial weights count little.

    Args:
        decay: the fraction of the average that each step keeps, at least 0 and below 1.
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0.0 <= decay < 1.0:
            raise UsageError(f"decay={decay}: it must be from 0 to below 1.")
        self.decay = decay

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective with a copy of the student, to be evaluated instead of it."""
        self.average = copy.deepcopy(objective.student.network).eval()
        for parameter in self.average.parameters():
            parameter.requires_grad_(False)
        return objective.evaluate_with(self.average)

    def on_fit_start(self, run: Run) -> None:
        """Pairs averages with parameters. Statistics, such as a batch norm's, are copied instead."""
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
