"""kdtrain: a plugin-style trainer for knowledge distillation on OneFlow.

What is listed here is the public API, the one that plugins are written against. Names are imported
when they are first used, because importing oneflow takes a second or two.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from kdtrain._version import __version__ as __version__

if TYPE_CHECKING:
    from kdtrain.callbacks import (
        Checkpoint,
        DistillationCallback,
        EarlyStopping,
        LearningRateSchedule,
        Progress,
    )
    from kdtrain.callbacks.features import FeatureLoss, FeatureMethod
    from kdtrain.data.loader import Batch, Loader
    from kdtrain.engine.callback import Callback, NeedsTeacher, NeedsWholeBatch
    from kdtrain.engine.events import BatchEnd, EpochEnd, EvalEnd, FitEnd, Status
    from kdtrain.engine.losses import soft_target_loss
    from kdtrain.engine.objective import Objective
    from kdtrain.engine.predict import predict_logits
    from kdtrain.engine.recorder import Output, Recorder, Shape, Teacher
    from kdtrain.engine.run import Run
    from kdtrain.engine.trainer import Trainer
    from kdtrain.errors import KdtrainError, UsageError
    from kdtrain.experiment.loaders import load_data
    from kdtrain.metrics.calibration import Reliability, reliability
    from kdtrain.metrics.fidelity import Fidelity, measure_fidelity
    from kdtrain.models.layers import Conv2d, Dropout
    from kdtrain.models.registry import build_model
    from kdtrain.runtime import flow
    from kdtrain.runtime.console import claim_terminal
    from kdtrain.runtime.files import write_text
    from kdtrain.runtime.regular_files import read_text
    from kdtrain.store.card import model_card
    from kdtrain.store.checkpoint import load_model
    from kdtrain.store.event_file import EventFile

_HOME = {
    "Batch": "kdtrain.data.loader",
    "BatchEnd": "kdtrain.engine.events",
    "Callback": "kdtrain.engine.callback",
    "Checkpoint": "kdtrain.callbacks",
    "Conv2d": "kdtrain.models.layers",
    "DistillationCallback": "kdtrain.callbacks",
    "Dropout": "kdtrain.models.layers",
    "EarlyStopping": "kdtrain.callbacks",
    "EpochEnd": "kdtrain.engine.events",
    "EvalEnd": "kdtrain.engine.events",
    "EventFile": "kdtrain.store.event_file",
    "FeatureLoss": "kdtrain.callbacks.features",
    "FeatureMethod": "kdtrain.callbacks.features",
    "Fidelity": "kdtrain.metrics.fidelity",
    "FitEnd": "kdtrain.engine.events",
    "KdtrainError": "kdtrain.errors",
    "LearningRateSchedule": "kdtrain.callbacks",
    "Loader": "kdtrain.data.loader",
    "NeedsTeacher": "kdtrain.engine.callback",
    "NeedsWholeBatch": "kdtrain.engine.callback",
    "Objective": "kdtrain.engine.objective",
    "Output": "kdtrain.engine.recorder",
    "Progress": "kdtrain.callbacks",
    "Recorder": "kdtrain.engine.recorder",
    "Reliability": "kdtrain.metrics.calibration",
    "Run": "kdtrain.engine.run",
    "Shape": "kdtrain.engine.recorder",
    "Status": "kdtrain.engine.events",
    "Teacher": "kdtrain.engine.recorder",
    "Trainer": "kdtrain.engine.trainer",
    "UsageError": "kdtrain.errors",
    "build_model": "kdtrain.models.registry",
    "claim_terminal": "kdtrain.runtime.console",
    "flow": "kdtrain.runtime",
    "load_data": "kdtrain.experiment.loaders",
    "load_model": "kdtrain.store.checkpoint",
    "measure_fidelity": "kdtrain.metrics.fidelity",
    "model_card": "kdtrain.store.card",
    "predict_logits": "kdtrain.engine.predict",
    "read_text": "kdtrain.runtime.regular_files",
    "reliability": "kdtrain.metrics.calibration",
    "soft_target_loss": "kdtrain.engine.losses",
    "write_text": "kdtrain.runtime.files",
}

__all__ = [
    "Batch",
    "BatchEnd",
    "Callback",
    "Checkpoint",
    "Conv2d",
    "DistillationCallback",
    "Dropout",
    "EarlyStopping",
    "EpochEnd",
    "EvalEnd",
    "EventFile",
    "FeatureLoss",
    "FeatureMethod",
    "Fidelity",
    "FitEnd",
    "KdtrainError",
    "LearningRateSchedule",
    "Loader",
    "NeedsTeacher",
    "NeedsWholeBatch",
    "Objective",
    "Output",
    "Progress",
    "Recorder",
    "Reliability",
    "Run",
    "Shape",
    "Status",
    "Teacher",
    "Trainer",
    "UsageError",
    "build_model",
    "claim_terminal",
    "flow",
    "load_data",
    "load_model",
    "measure_fidelity",
    "model_card",
    "predict_logits",
    "read_text",
    "reliability",
    "soft_target_loss",
    "write_text",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
