"""Histograms of the weights."""

from __future__ import annotations

from kdtrain import EpochEnd, EventFileObserver, Run, at_least


class Histograms(EventFileObserver):
    """Shows in TensorBoard how the values of each parameter are distributed: weights/NAME.

    The parameters are those of the network that is evaluated.

    Args:
        every: epochs between two histograms; the last epoch always has one.
    """

    suffix = ".histograms"

    def __init__(self, every: int = 5) -> None:
        self.every = at_least("every", every, 1)

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Writes the histograms if they are due."""
        if event.epoch % self.every and event.epoch != run.epochs and not run.stop_reason:
            return
        for name, parameter in run.evaluated.named_parameters():
            self.add_histogram(f"weights/{name}", parameter.detach().numpy(), event.step)
