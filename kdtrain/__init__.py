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
    from kdtrain.callbacks import DistillationCallback
    from kdtrain.callbacks.distillation import NeedsTeacher
    from kdtrain.callbacks.tensorboard import EventFile
    from kdtrain.console import claim_terminal
    from kdtrain.data.loader import Batch, Loader
    from kdtrain.errors import KdtrainError, UsageError
    from kdtrain.events import BatchEnd, EpochEnd, EvalEnd, FitEnd, Status
    from kdtrain.losses.soft_targets import soft_target_loss
    from kdtrain.models.layers import Conv2d
    from kdtrain.objective import Objective, Output
    from kdtrain.predict import predict_logits
    from kdtrain.recording import Recorder, Shape, Teacher
    from kdtrain.run import Run
    from kdtrain.runtime import flow
    from kdtrain.store.atomic import write_text
    from kdtrain.trainer import Trainer

_HOME = {
    "Batch": "kdtrain.data.loader",
    "BatchEnd": "kdtrain.events",
    "Callback": "kdtrain.callback",
    "Conv2d": "kdtrain.models.layers",
    "DistillationCallback": "kdtrain.callbacks",
    "EpochEnd": "kdtrain.events",
    "EvalEnd": "kdtrain.events",
    "EventFile": "kdtrain.callbacks.tensorboard",
    "FitEnd": "kdtrain.events",
    "KdtrainError": "kdtrain.errors",
    "Loader": "kdtrain.data.loader",
    "NeedsTeacher": "kdtrain.callbacks.distillation",
    "Objective": "kdtrain.objective",
    "Output": "kdtrain.objective",
    "Recorder": "kdtrain.recording",
    "Run": "kdtrain.run",
    "Shape": "kdtrain.recording",
    "Status": "kdtrain.events",
    "Teacher": "kdtrain.recording",
    "Trainer": "kdtrain.trainer",
    "UsageError": "kdtrain.errors",
    "claim_terminal": "kdtrain.console",
    "flow": "kdtrain.runtime",
    "predict_logits": "kdtrain.predict",
    "soft_target_loss": "kdtrain.losses.soft_targets",
    "write_text": "kdtrain.store.atomic",
}

__all__ = [
    "Batch",
    "BatchEnd",
    "Callback",
    "Conv2d",
    "DistillationCallback",
    "EpochEnd",
    "EvalEnd",
    "EventFile",
    "FitEnd",
    "KdtrainError",
    "Loader",
    "NeedsTeacher",
    "Objective",
    "Output",
    "Recorder",
    "Run",
    "Shape",
    "Status",
    "Teacher",
    "Trainer",
    "UsageError",
    "claim_terminal",
    "flow",
    "predict_logits",
    "soft_target_loss",
    "write_text",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
