"""The callback that writes TensorBoard's curves."""

from __future__ import annotations

from collections.abc import Mapping

from kdtrain.engine.callback import Callback
from kdtrain.engine.events import BatchEnd, EpochEnd, EvalEnd, FitEnd
from kdtrain.engine.run import Run
from kdtrain.store.event_file import EventFile


class TensorBoard(Callback):
    """Scalars over optimizer steps, and the configuration as text.

    The losses and the learning rate are written every few steps, accuracy, cross-entropy and
    images per second once an epoch.

    Args:
        config: the resolved configuration (TOML), shown as text; left out when empty.
        every: steps between two points of the losses.
    """

    def __init__(self, config: str = "", every: int = 50) -> None:
        self.config = config
        self.every = every
        self._file: EventFile | None = None

    def on_fit_start(self, run: Run) -> None:
        """Opens the event file in the run's directory.

        A process that was killed may not have written the last point of the epoch that it had finished.
        """
        from tensorboardX import summary

        self._file = EventFile(run.directory, up_to=run.step)
        if self.config and not self._file.earlier:
            self._file.add(summary.text("config", f"```toml\n{self.config.strip()}\n```"))
        if run.resumed is not None and ("images_per_second", run.step) not in self._file.earlier:
            self._scalars({"images_per_second": run.resumed.images_per_second}, run.step)
        self._file.flush()

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        """Writes the losses at the first step and at every ``every``-th."""
        if event.step == 1 or event.step % self.every == 0:
            losses = {f"loss/{name}": loss.item() for name, loss in event.losses.items()}
            self._scalars({**losses, "learning_rate": event.learning_rate}, event.step)

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Writes the evaluation against the same steps."""
        evaluation = {name: value for name, value in event.metrics.items() if name.startswith("eval/")}
        self._scalars(evaluation, event.step)
        if self._file is not None:
            self._file.flush()  # before a checkpoint says that this epoch is finished

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Writes the throughput, and brings the file up to date on disk."""
        self._scalars({"images_per_second": event.images_per_second}, event.step)
        if self._file is not None:
            self._file.flush()

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Closes the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _scalars(self, values: Mapping[str, float], step: int) -> None:
        if self._file is not None:
            self._file.add_scalars(values, step)
