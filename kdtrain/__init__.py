"""kdtrain: a plugin-style trainer for knowledge distillation on OneFlow.

What is listed here is the public API, the one that plugins are written against. Names are imported
when they are first used, because importing oneflow takes a second or two.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from kdtrain.callback import Callback
    from kdtrain.callbacks import (
        Checkpoint,
        DistillationCallback,
        EarlyStopping,
        LearningRateSchedule,
        Progress,
    )
    from kdtrain.callbacks.tensorboard import EventFile
    from kdtrain.data.loader import Batch, Loader
    from kdtrain.errors import KdtrainError, UsageError
    from kdtrain.events import BatchEnd, EpochEnd, EvalEnd, FitEnd, Status
    from kdtrain.losses.soft_targets import soft_target_loss
    from kdtrain.models.registry import build_model
    from kdtrain.notebook import load_data
    from kdtrain.objective import Objective, Output
    from kdtrain.run import Run
    from kdtrain.runtime import flow
    from kdtrain.store.checkpoint import load_model
    from kdtrain.teachers import model_card
    from kdtrain.trainer import Trainer

_HOME = {
    "Batch": "kdtrain.data.loader",
    "BatchEnd": "kdtrain.events",
    "Callback": "kdtrain.callback",
    "Checkpoint": "kdtrain.callbacks",
    "DistillationCallback": "kdtrain.callbacks",
    "EarlyStopping": "kdtrain.callbacks",
    "EpochEnd": "kdtrain.events",
    "EvalEnd": "kdtrain.events",
    "EventFile": "kdtrain.callbacks.tensorboard",
    "FitEnd": "kdtrain.events",
    "KdtrainError": "kdtrain.errors",
    "LearningRateSchedule": "kdtrain.callbacks",
    "Loader": "kdtrain.data.loader",
    "Objective": "kdtrain.objective",
    "Output": "kdtrain.objective",
    "Progress": "kdtrain.callbacks",
    "Run": "kdtrain.run",
    "Status": "kdtrain.events",
    "Trainer": "kdtrain.trainer",
    "UsageError": "kdtrain.errors",
    "build_model": "kdtrain.models.registry",
    "flow": "kdtrain.runtime",
    "load_data": "kdtrain.notebook",
    "load_model": "kdtrain.store.checkpoint",
    "model_card": "kdtrain.teachers",
    "soft_target_loss": "kdtrain.losses.soft_targets",
}

__all__ = [
    "Batch",
    "BatchEnd",
    "Callback",
    "Checkpoint",
    "DistillationCallback",
    "EarlyStopping",
    "EpochEnd",
    "EvalEnd",
    "EventFile",
    "FitEnd",
    "KdtrainError",
    "LearningRateSchedule",
    "Loader",
    "Objective",
    "Output",
    "Progress",
    "Run",
    "Status",
    "Trainer",
    "UsageError",
    "build_model",
    "flow",
    "load_data",
    "load_model",
    "model_card",
    "soft_target_loss",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
