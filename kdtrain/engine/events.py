"""The events that hooks receive: one frozen payload each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from kdtrain.data.loader import Batch
from kdtrain.runtime import flow


class Status(str, Enum):
    """The way in which a fit ended."""

    COMPLETED = "completed"
    STOPPED = "stopped"  # a callback asked for it
    INTERRUPTED = "interrupted"  # Ctrl-C or SIGTERM
    FAILED = "failed"


class BatchEnd(NamedTuple):  # made at every step, in a fifth of the time that a frozen dataclass takes
    """The end of an optimizer step.

    Attributes:
        epoch: number of the epoch, from 1.
        step: optimizer steps made so far in the whole fit, this one included.
        batch: the images trained on. Where processes share the batch, it is this process's part.
        losses: each term's loss and ``total``, the means over the whole batch: scalar tensors on the
            device. ``.item()`` waits until the step is computed, so call it only when needed.
        learning_rate: the rate that this step used.
    """

    epoch: int
    step: int
    batch: Batch
    losses: Mapping[str, flow.Tensor]
    learning_rate: float


@dataclass(frozen=True, eq=False)  # arrays have no single truth value
class EvalEnd:
    """The end of an epoch's evaluation on the held-out images.

    Attributes:
        epoch: number of the epoch, from 1.
        step: optimizer steps made so far.
        metrics: ``val/accuracy`` (fraction), ``val/cross_entropy`` (nats per image), and the
            epoch's mean training losses as ``loss/NAME``.
        seconds: duration of the evaluation.
        logits: the network's logits of the held-out images, (N, C) float32, row i for image i. They belong
            to all callbacks: copy before you change them.
    """

    epoch: int
    step: int
    metrics: Mapping[str, float]
    seconds: float
    logits: npt.NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32), repr=False)


@dataclass(frozen=True)
class EpochEnd:
    """The end of an epoch, after ``on_eval`` of every callback.

    Attributes:
        epoch: number of the epoch, from 1.
        step: optimizer steps made so far.
        metrics: as in the epoch's ``EvalEnd``.
        images: number of images trained on.
        seconds: duration of the training steps, without the evaluation.
        eval_seconds: duration of the evaluation.
        learning_rate: the rate of the epoch's last step.
    """

    epoch: int
    step: int
    metrics: Mapping[str, float]
    images: int
    seconds: float
    eval_seconds: float
    learning_rate: float

    @property
    def images_per_second(self) -> float:
        """Training throughput, in images per second."""
        return self.images / self.seconds if self.seconds > 0 else float("inf")


@dataclass(frozen=True)
class FitEnd:
    """The end of a fit.

    Attributes:
        status: the way in which it ended.
        reason: why it ended early; None if it was completed.
        epoch: the last epoch that was begun.
        step: optimizer steps made.
        seconds: duration of the call of ``fit``, callbacks included. The seconds in files and tables are
            those of all epochs instead: ``seconds + eval_seconds`` of each ``EpochEnd``.
    """

    status: Status
    reason: str | None
    epoch: int
    step: int
    seconds: float
