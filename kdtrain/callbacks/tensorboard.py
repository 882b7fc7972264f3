"""The callback that writes a run's curves for TensorBoard."""

from __future__ import annotations

from kdtrain.callbacks.event_file_observer import EventFileObserver
from kdtrain.engine.events import BatchEnd, EpochEnd, EvalEnd
from kdtrain.engine.run import Run


class TensorBoard(EventFileObserver):
    """Writes scalars over optimizer steps, and the configuration as text.

    The losses and the learning rate are written every few steps; accuracy, cross-entropy and images per
    second once an epoch.

    Args:
        config: the resolved configuration (TOML), shown as text; left out when empty.
        every: steps between two points of the losses.
    """

    suffix = ""

    def __init__(self, config: str = "", every: int = 50) -> None:
        self.config = config
        self.every = every

    def on_fit_start(self, run: Run) -> None:
        """Opens the event file; writes the configuration, unless the file of a resumed run holds it."""
        from tensorboardX import summary

        super().on_fit_start(run)
        if self.config and not self.file.earlier:
            self.file.add(summary.text("config", f"```toml\n{self.config.strip()}\n```"))
            self.file.flush()

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Writes the losses at the first step and at every ``every``-th."""
        if event.step == 1 or event.step % self.every == 0:
            losses = {f"loss/{name}": loss.item() for name, loss in event.losses.items()}
            self.add_scalars({**losses, "learning_rate": event.learning_rate}, event.step)

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Writes the evaluation against the same steps."""
        evaluation = {name: value for name, value in event.metrics.items() if name.startswith("val/")}
        self.add_scalars(evaluation, event.step)

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Writes the throughput."""
        self.add_scalars({"images_per_second": event.images_per_second}, event.step)
