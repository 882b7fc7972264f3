"""The built-in callbacks, one file each, and their common parts.

``experiment`` chooses the callbacks of a fit. Imports any room except that and ``cli``.
"""

from kdtrain.callbacks.checkpoint import Checkpoint
from kdtrain.callbacks.distillation import DistillationCallback
from kdtrain.callbacks.early_stopping import EarlyStopping
from kdtrain.callbacks.finite import StopOnNonFinite
from kdtrain.callbacks.progress import Progress
from kdtrain.callbacks.run_log import RunLog
from kdtrain.callbacks.schedule import LearningRateSchedule
from kdtrain.callbacks.tensorboard import TensorBoard
from kdtrain.callbacks.weight_decay import WeightDecay

__all__ = [
    "Checkpoint",
    "DistillationCallback",
    "EarlyStopping",
    "LearningRateSchedule",
    "Progress",
    "RunLog",
    "StopOnNonFinite",
    "TensorBoard",
    "WeightDecay",
]
