"""Watches the size of the gradient."""

from __future__ import annotations

from kdtrain import BatchEnd, Callback, EpochEnd, EventFile, FitEnd, Run, UsageError, flow


class GradNorm(Callback):
    """Shows the gradient's Euclidean norm in TensorBoard, as grad_norm.

    The norm is over all of the network's parameters together, as the optimizer has just used them.

    Args:
        every: optimizer steps between two measurements.
    """

    def __init__(self, every: int = 50) -> None:
        if every < 1:
            raise UsageError(f"every={every}: it must be at least 1.")
        self.every = every
        self.file: EventFile | None = None

    def on_fit_start(self, run: Run) -> None:
        """Opens an event file beside the run's own."""
        self.file = EventFile(run.directory, suffix=".grad_norm")

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Measures now and then."""
        if self.file is not None and event.step % self.every == 0:
            squares = [(p.grad.double() ** 2).sum() for p in run.model.parameters() if p.grad is not None]
            norm = flow.stack(squares).sum().sqrt().item()
            self.file.add_scalars({"grad_norm": norm}, event.step)

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Lets TensorBoard see it."""
        if self.file is not None:
            self.file.flush()

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Closes the file."""
        if self.file is not None:
            self.file.close()
