"""What hooks are told: frozen payloads, one per event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from kdtrain.data.loader import Batch
from kdtrain.runtime import flow


class Status(str, Enum):
    """How a fit ended."""

    COMPLETED = "completed"
    STOPPED = "stopped"  # a callback asked for it
    INTERRUPTED = "interrupted"  # Ctrl-C or SIGTERM
    FAILED = "failed"


class BatchEnd(NamedTuple):  # made at every step, in a fifth of the time that a frozen dataclass takes
    """An optimizer step was made.

    Attributes:
        epoch: number of the epoch, from 1.
        step: optimizer steps made so far in the whole fit, this one included.
        batch: the images trained on; where processes share the work, this one's part of them.
        losses: each term and ``total`` over the whole batch; scalar tensors on the device.
            ``.item()`` waits for the step to be computed: it is up to each callback when to pay for
            that.
        learning_rate: the rate that this step used.
    """

    epoch: int
    step: int
    batch: Batch
    losses: Mapping[str, flow.Tensor]
    learning_rate: float


@dataclass(frozen=True)
class EvalEnd:
    """The held-out images were evaluated.

    Attributes:
        epoch: number of the epoch, from 1.
        step: optimizer steps made so far.
        metrics: ``eval/accuracy`` (fraction), ``eval/cross_entropy`` (nats per image), and the
            epoch's mean training losses as ``loss/NAME``.
        seconds: how long the evaluation took.
    """

    epoch: int
    step: int
    metrics: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class EpochEnd:
    """Every callback has seen the epoch's evaluation.

    Attributes:
        epoch: number of the epoch, from 1.
        step: optimizer steps made so far.
        metrics: as in the epoch's ``EvalEnd``.
        images: how many images were trained on.
        seconds: how long training on them took, evaluation not included.
        eval_seconds: how long the evaluation took.
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
        """Training throughput."""
        return self.images / self.seconds if self.seconds > 0 else float("inf")


@dataclass(frozen=True)
class FitEnd:
    """The fit is over, in whichever way.

    Attributes:
        status: how it ended.
        reason: why it ended early; None where it ran its course.
        epoch: the last epoch that was begun.
        step: optimizer steps made.
        seconds: how long the fit took.
    """

    status: Status
    reason: str | None
    epoch: int
    step: int
    seconds: float
