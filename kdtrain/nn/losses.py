"""Losses on logits as nodes of OneFlow's autograd graph, in NumPy: the value and its gradient in one go."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.nn.operations import Node
from kdtrain.runtime import flow


class _LogitLoss(Node):
    """A loss of logits (B, C), whose gradient is computed along with it. It may be infinite or NaN."""

    gradient: npt.NDArray[np.float32]

    @np.errstate(all="ignore")
    def backward(self, dy: flow.Tensor) -> flow.Tensor:
        """Returns the gradient of the logits, given that of the loss."""
        return flow.from_numpy(self.gradient * dy.to_numpy())


class CrossEntropy(_LogitLoss):
    """The cross-entropy against labels, in nats: the mean over the images that have one.

    Args:
        labels: (B,) int64; any class for an image without one.
        labelled: which images have a label, (B,) bool; None if all have one.
        count: by which the sum of the losses is divided; the number of images by default.
        mixed: for mixed images their second labels, (B,) int64, and the share of the first, (B,) float32.
        class_weights: the factor of the loss on a label of each class, (C,) float32; 1 by default.
    """

    def __init__(
        self,
        labels: flow.Tensor,
        labelled: flow.Tensor | None = None,
        count: float | None = None,
        mixed: tuple[flow.Tensor, flow.Tensor] | None = None,
        class_weights: flow.Tensor | None = None,
    ) -> None:
        self.labels = [labels.to_numpy()]
        size = len(self.labels[0])
        self.count = size if count is None else count
        known = np.ones(size, np.float32) if labelled is None else labelled.to_numpy().astype(np.float32)
        self.weights = [known]
        if mixed is not None:
            share = mixed[1].to_numpy()
            self.labels.append(mixed[0].to_numpy())
            self.weights = [known * share, known * (1 - share)]
        if class_weights is not None:
            factors, pairs = class_weights.to_numpy(), zip(self.labels, self.weights, strict=True)
            self.weights = [weights * factors[labels] for labels, weights in pairs]

    @np.errstate(all="ignore")
    def forward(self, logits: flow.Tensor) -> flow.Tensor:
        """Returns the loss."""
        log_probabilities = log_softmax(logits.to_numpy())
        rows, loss = np.arange(len(log_probabilities)), 0.0
        self.gradient = np.exp(log_probabilities)
        self.gradient *= np.sum(self.weights, axis=0)[:, None]
        for labels, weights in zip(self.labels, self.weights, strict=True):
            loss -= (log_probabilities[rows, labels] * weights).sum(dtype=np.float64)
            self.gradient[rows, labels] -= weights
        self.gradient /= np.float32(self.count)
        return scalar(np.float64(loss) / self.count)


class SoftTargetLoss(_LogitLoss):
    """T^2 * KL(teacher || student) of softened probabilities, the mean over the images; in float64.

    Args:
        teacher: logits, (B, C) float32.
        temperature: T, above 0.
    """

    def __init__(self, teacher: flow.Tensor, temperature: float) -> None:
        self.teacher, self.temperature = teacher.to_numpy(), temperature

    @np.errstate(all="ignore")
    def forward(self, logits: flow.Tensor) -> flow.Tensor:
        """Returns the loss."""
        student, teacher = (
            log_softmax(each.astype(np.float64) / self.temperature)
            for each in (logits.to_numpy(), self.teacher)
        )
        probabilities, images = np.exp(teacher), len(teacher)
        loss = np.vdot(probabilities, teacher - student) * (self.temperature**2 / images)
        difference = (np.exp(student) - probabilities) * (self.temperature / images)
        self.gradient = difference.astype(np.float32)
        return scalar(loss)


class WeightedSum(Node):
    """The sum of float32 scalars, each times a factor.

    Args:
        factors: one for each of them.
    """

    def __init__(self, factors: Sequence[float]) -> None:
        self.factors = [np.float32(factor) for factor in factors]

    @np.errstate(all="ignore")
    def forward(self, *losses: flow.Tensor) -> flow.Tensor:
        """Returns the sum."""
        total = np.float32(0.0)
        for loss, factor in zip(losses, self.factors, strict=True):
            total += factor * np.float32(loss.to_numpy().item())
        return scalar(total)

    def backward(self, dy: flow.Tensor) -> tuple[flow.Tensor, ...]:
        """Returns the gradient of each, given that of the sum."""
        gradient = np.float32(dy.to_numpy().item())
        return tuple(scalar(gradient * factor) for factor in self.factors)


def scalar(number: Any) -> flow.Tensor:
    """Returns a float32 scalar that shares no memory with ``number``.

    ``item`` of a scalar that does share it ends the process once in some thousand times.
    """
    return flow.from_numpy(np.asarray(number, np.float32)).clone()


def log_softmax(x: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the logarithms of the softmax of each row, (B, C), in the precision of ``x``."""
    shifted: npt.NDArray[Any] = x - x.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
