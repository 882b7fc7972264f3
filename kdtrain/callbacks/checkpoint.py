"""Keeps the best weights, and everything that a resumed fit needs."""

from __future__ import annotations

import dataclasses
from typing import Any

from kdtrain.callbacks.monitor import Mode, Monitor
from kdtrain.engine.callback import Callback
from kdtrain.engine.events import EpochEnd, EvalEnd
from kdtrain.engine.resume import save_state
from kdtrain.engine.run import Run
from kdtrain.runtime.files import make_folder
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import fingerprint, save_model, snapshot


class Checkpoint(Callback):
    """Writes ``checkpoints/best.safetensors`` and ``checkpoints/last.safetensors``.

    ``best`` is written after each epoch that no earlier one beats: of equals the latest is kept,
    because while the learning rate falls, later weights wander less. ``last`` is written after
    every epoch and holds the optimizer's and the callbacks' state as well.

    Args:
        card: what the weights are for; the fit's length and images are added, and the epoch's metrics.
        monitor: the metric that decides.
        mode: ``max`` where more is better, ``min`` where less is.
    """

    def __init__(self, card: ModelCard, monitor: str = "eval/accuracy", mode: Mode = "max") -> None:
        self.card = card
        self.monitor = Monitor(monitor, mode)
        self._is_best = False

    def on_fit_start(self, run: Run) -> None:
        """Makes the folder, which is not made again if it is deleted later; completes the card."""
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
        self._is_best = improved or event.metrics[self.monitor.metric] == self.monitor.best

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
        """Takes back the best value."""
        self.monitor.load_state_dict(state)
