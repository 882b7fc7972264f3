"""The callback that saves the best weights, and the state for a resumed fit."""

from __future__ import annotations

import dataclasses
from typing import Any

from kdtrain.callbacks.early_stopping import Monitor, MonitorMode
from kdtrain.engine.callback import Callback
from kdtrain.engine.events import EpochEnd, EvalEnd
from kdtrain.engine.resume import save_state
from kdtrain.engine.run import Run
from kdtrain.errors import UsageError
from kdtrain.metrics.evaluation import standard_error
from kdtrain.metrics.names import ACCURACY
from kdtrain.runtime.files import make_folder
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import fingerprint, save_model, snapshot


class Checkpoint(Callback):
    """Writes ``checkpoints/best.safetensors`` and ``checkpoints/last.safetensors``.

    ``best`` is written after each epoch whose metric is at least the best so far. The latest of equal epochs
    is kept, because the weights change less in later epochs, while the learning rate falls. ``last`` is
    written after every epoch, and holds the state of the optimizer and of the callbacks as well.

    Few held-out images rank epochs by luck. With ``standard_errors`` the latest epoch is kept whose accuracy
    is less than so many standard errors below the best (Breiman et al., "Classification and Regression
    Trees", 1984, section 3.4.3: the 1 SE rule).

    Args:
        card: describes the weights; the fit's length, images and metrics are added to it.
        monitor: the metric that decides.
        mode: ``max`` if a higher value is better, ``min`` if a lower one is.
        standard_errors: how many standard errors of the best accuracy an epoch may fall short of it; for
            ``val/accuracy`` only.

    Raises:
        UsageError: ``standard_errors`` is given for another metric.
    """

    def __init__(
        self,
        card: ModelCard,
        monitor: str = ACCURACY,
        mode: MonitorMode = "max",
        standard_errors: float = 0.0,
    ) -> None:
        if standard_errors and (monitor, mode) != (ACCURACY, "max"):
            raise UsageError(f"standard_errors {standard_errors:g} is for the monitor {ACCURACY!r} alone.")
        self.card = card
        self.monitor = Monitor(monitor, mode)
        self.standard_errors = standard_errors
        self._is_best = False

    def on_fit_start(self, run: Run) -> None:
        """Makes the folder, and completes the card. A folder that is deleted later is not made again."""
        make_folder(run.directory / "checkpoints")
        labels = {"labels": run.validation.targets}
        self.card = dataclasses.replace(
            self.card,
            epochs=run.epochs,
            images=run.train.num_images,
            held_out=fingerprint(labels, run.validation.fingerprint),
        )

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Decides whether these weights are the best so far."""
        improved = self.monitor.improved(event.metrics)
        best, value = self.monitor.best, event.metrics[self.monitor.metric]
        self._is_best = improved or value == best
        if self.standard_errors and best is not None:
            error = standard_error(best, run.validation.num_images)
            self._is_best = self._is_best or value > best - self.standard_errors * error

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Writes the files."""
        card = dataclasses.replace(self.card, metrics=dict(event.metrics))
        folder = run.directory / "checkpoints"
        if self._is_best:
            save_model(folder / "best.safetensors", snapshot(run.evaluated), card)
        save_state(
            folder / "last.safetensors",
            card,
            run.modules,
            run.optimizer,
            run.callback_states(),
            run.train.fingerprint,
            event,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value so far."""
        return self.monitor.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the best value."""
        self.monitor.load_state_dict(state)
