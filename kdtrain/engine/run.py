"""The fit under way, as callbacks see it: attributes to read, and ``stop``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtrain.data.loader import Loader
from kdtrain.engine.events import EpochEnd
from kdtrain.engine.objective import Objective
from kdtrain.runtime import flow


@dataclass
class FitProgress:
    """Counters of a fit, and the reasons to stop it. Only the trainer changes the counters."""

    epoch: int = 0
    step: int = 0
    stop_reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A fit, as callbacks see it. They only read it; the one method that acts is ``stop``.

    Attributes:
        model: the network in training.
        optimizer: its optimizer (a learning-rate schedule sets ``lr`` in its ``param_groups``).
        objective: the configured objective.
        train: the training images.
        validation: the held-out images.
        epochs: number of epochs to train.
        directory: the folder for this run's files.
        callback_states: returns every callback's ``state_dict`` by the callback's name.
        resumed: the end of the last finished epoch of a resumed fit; None in a new fit.
    """

    model: flow.nn.Module
    optimizer: flow.optim.Optimizer
    objective: Objective
    train: Loader
    validation: Loader
    epochs: int
    directory: Path
    callback_states: Callable[[], dict[str, dict[str, Any]]]
    resumed: EpochEnd | None = None
    _progress: FitProgress = field(default_factory=FitProgress, repr=False)

    @property
    def evaluated(self) -> flow.nn.Module:
        """The network that is evaluated and kept: the objective's ``eval_model`` if any, else ``model``."""
        return self.model if self.objective.eval_model is None else self.objective.eval_model

    @property
    def modules(self) -> tuple[flow.nn.Module, ...]:
        """Everything with weights: the model, the terms that are modules, the ``eval_model`` if any."""
        eval_model = self.objective.eval_model
        return (self.model, *self.objective.modules(), *(() if eval_model is None else (eval_model,)))

    @property
    def epoch(self) -> int:
        """Number of the current epoch, from 1; 0 before the first."""
        return self._progress.epoch

    @property
    def step(self) -> int:
        """Optimizer steps made so far."""
        return self._progress.step

    @property
    def total_steps(self) -> int:
        """Optimizer steps in the whole fit, unless it is stopped early."""
        return self.epochs * len(self.train)

    @property
    def learning_rate(self) -> float:
        """The optimizer's current rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def stopping(self) -> bool:
        """Whether ``stop`` was called."""
        return bool(self._progress.stop_reasons)

    @property
    def stop_reason(self) -> str | None:
        """The reasons given to ``stop``; None if it was not called."""
        return "; ".join(self._progress.stop_reasons) or None

    def stop(self, reason: str) -> None:
        """Ends the fit after the current event has reached every callback.

        The current epoch is still evaluated and ended. Several reasons are joined. A stop cannot be undone.
        """
        self._progress.stop_reasons.append(reason)
