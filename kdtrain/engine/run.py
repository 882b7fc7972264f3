"""What a callback may read of the fit under way, and the one thing it may ask for."""

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
class Progress:
    """How far the fit has come; the trainer's to change."""

    epoch: int = 0
    step: int = 0
    stop_reasons: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Run:
    """A fit, as callbacks see it. Read it; the one verb is ``stop``.

    Attributes:
        model: the network in training.
        optimizer: its optimizer (a learning-rate schedule sets ``lr`` in its ``param_groups``).
        objective: the configured objective.
        train: the training images.
        validation: the held-out images.
        epochs: how many epochs the fit is to last.
        directory: where this run's files go.
        callback_states: returns every callback's ``state_dict``, by callback.
        resumed: how the last epoch before this process ended; None where the fit begins here.
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
    _progress: Progress = field(default_factory=Progress, repr=False)

    @property
    def evaluated(self) -> flow.nn.Module:
        """The network that is evaluated and kept as the best: ``model``, unless another stands in."""
        return self.model if self.objective.eval_model is None else self.objective.eval_model

    @property
    def modules(self) -> tuple[flow.nn.Module, ...]:
        """All that has weights: the model, terms that have some, the network that stands in."""
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
        """Whether somebody has asked for a stop."""
        return bool(self._progress.stop_reasons)

    @property
    def stop_reason(self) -> str | None:
        """Why the fit is going to stop; None while nobody has asked for it."""
        return "; ".join(self._progress.stop_reasons) or None

    def stop(self, reason: str) -> None:
        """Ends the fit once the current event has reached every callback.

        The current epoch is still evaluated and ended. Reasons add up; nobody can take one back.
        """
        self._progress.stop_reasons.append(reason)
