"""The callback that stops a fit that no longer improves, and the best value of its metric so far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kdtrain.engine.callback import Callback
from kdtrain.engine.events import EvalEnd
from kdtrain.engine.run import Run
from kdtrain.errors import UsageError, unknown_name_message
from kdtrain.metrics.names import ACCURACY


class EarlyStopping(Callback):
    """Stops when the monitored metric has not improved for ``patience`` epochs in a row.

    Args:
        patience: epochs without improvement after which the fit stops, at least 1.
        min_delta: the smallest change that counts as an improvement, in the metric's unit.
        monitor: the metric's name.
        mode: ``max`` if a higher value is better, ``min`` if a lower one is.
    """

    def __init__(
        self, patience: int = 5, min_delta: float = 0.0, monitor: str = ACCURACY, mode: MonitorMode = "max"
    ) -> None:
        if patience < 1:
            raise UsageError(f"patience {patience} of early stopping: it must be at least 1.")
        self.patience = patience
        self.monitor = Monitor(monitor, mode, min_delta)
        self.waited = 0

    def on_fit_start(self, run: Run) -> None:
        """Stops a resumed fit that was stopped before."""
        self._stop_if_due(run)

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Counts the epochs since the last improvement."""
        self.waited = 0 if self.monitor.improved(event.metrics) else self.waited + 1
        self._stop_if_due(run)

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value and the epochs waited."""
        return {**self.monitor.state_dict(), "waited": self.waited}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
        self.monitor.load_state_dict(state)
        self.waited = state["waited"]

    def _stop_if_due(self, run: Run) -> None:
        if self.waited >= self.patience:
            epochs = "an epoch" if self.patience == 1 else f"{self.patience} epochs"
            best = "no number at all" if self.monitor.best is None else f"best {self.monitor.best:.4f}"
            run.stop(f"no better {self.monitor.metric} for {epochs} ({best})")


MonitorMode = Literal["max", "min"]


class Monitor:
    """Keeps the best value of one metric.

    Args:
        metric: its name in the evaluation, such as ``val/accuracy``.
        mode: ``max`` if a higher value is better, ``min`` if a lower one is.
        min_delta: the difference by which a value must beat the best one, in the metric's unit.
    """

    def __init__(self, metric: str, mode: MonitorMode, min_delta: float = 0.0) -> None:
        if mode not in ("max", "min"):
            raise UsageError(f"mode {mode!r} of the monitor on {metric}: it must be 'max' or 'min'.")
        if not min_delta >= 0.0:
            raise UsageError(f"min_delta {min_delta} of the monitor on {metric}: it must not be negative.")
        self.metric = metric
        self.mode = mode
        self.min_delta = min_delta
        self.best: float | None = None

    def improved(self, metrics: Mapping[str, float]) -> bool:
        """Returns whether an evaluation beats all earlier ones, and keeps its value if it does.

        NaN never beats a value.

        Raises:
            UsageError: the evaluation has no such metric.
        """
        if self.metric not in metrics:
            raise UsageError(unknown_name_message("metric", self.metric, sorted(metrics)))
        value = metrics[self.metric]
        if self.best is None:
            better = value == value
        else:
            gain = value - self.best if self.mode == "max" else self.best - value
            better = gain > self.min_delta
        if better:
            self.best = value
        return better

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value so far."""
        return {"best": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the best value."""
        self.best = state["best"]
