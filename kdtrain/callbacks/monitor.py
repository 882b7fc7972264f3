"""The best value of a metric so far, which Checkpoint and EarlyStopping follow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from kdtrain.errors import UsageError, unknown_name_message

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
