"""Watches the size of the gradient."""

from __future__ import annotations

from tensorboardX import SummaryWriter

from kdtrain import BatchEnd, Callback, FitEnd, Run, UsageError, flow


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
        self.writer: SummaryWriter | None = None

    def on_fit_start(self, run: Run) -> None:
        """Opens an event file beside the run's own."""
        self.writer = SummaryWriter(logdir=str(run.directory), filename_suffix=".grad_norm")

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Measures now and then."""
        if self.writer is not None and event.step % self.every == 0:
            squares = [(p.grad.double() ** 2).sum() for p in run.model.parameters() if p.grad is not None]
            norm = flow.stack(squares).sum().sqrt().item()
            self.writer.add_scalar("grad_norm", norm, event.step)

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Closes the file."""
        if self.writer is not None:
            self.writer.close()
