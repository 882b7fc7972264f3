"""A network's figures on a data set: accuracy, cross-entropy, confusion; its fidelity to a teacher."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax

from kdtrain.errors import DataError, NonFiniteError
from kdtrain.metrics.probabilities import reliability
from kdtrain.runtime.limits import in_slices


@dataclass(frozen=True, eq=False, repr=False)
class Evaluation:
    """A network's figures on one data set; made by ``Evaluation.from_logits``.

    Attributes:
        images: number N of images.
        errors: number of images whose most probable class is not the true one.
        accuracy: fraction 0..1.
        cross_entropy: nats per image.
        calibration_error: the expected calibration error, 0..1; see ``reliability``.
        per_class_accuracy: fraction 0..1 of each class's images; None for a class without images.
        confusion: (classes, classes) int64 counts; rows are the truth, columns the prediction.
        correct: (N,) bool, whether each image was recognised.
    """

    images: int
    errors: int
    accuracy: float
    cross_entropy: float
    calibration_error: float
    per_class_accuracy: tuple[float | None, ...]
    confusion: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]

    @classmethod
    def from_logits(cls, logits: npt.ArrayLike, labels: npt.ArrayLike) -> Evaluation:
        """Returns the figures, computed in float64.

        Args:
            logits: (N, classes), any float dtype.
            labels: (N,) integers, the true classes.

        Raises:
            DataError: there are no images, the shapes do not match, or a label is outside 0..classes-1.
            NonFiniteError: a logit is not finite.
        """
        scores, truth = _checked(logits, labels)
        images, classes = scores.shape
        losses, predicted = np.empty(images), scores.argmax(axis=1)
        for few in in_slices(scores.shape):  # in slices to bound the memory for float64
            rows = log_softmax(scores[few].astype(np.float64), axis=1)
            losses[few] = -rows[np.arange(len(rows)), truth[few]]
        correct = predicted == truth
        confusion = np.bincount(truth * classes + predicted, minlength=classes * classes)
        confusion = confusion.reshape(classes, classes)
        hits, totals = confusion.diagonal().tolist(), confusion.sum(axis=1).tolist()
        return cls(
            images=images,
            errors=images - int(correct.sum()),
            accuracy=int(correct.sum()) / images,
            cross_entropy=float(losses.mean()),
            calibration_error=reliability(scores, truth).error,
            per_class_accuracy=tuple(
                hit / total if total else None for hit, total in zip(hits, totals, strict=True)
            ),
            confusion=confusion,
            correct=correct,
        )

    @property
    def balanced_accuracy(self) -> float:
        """The mean of the classes' accuracies, of those that have images: a fraction 0..1."""
        return float(np.mean([share for share in self.per_class_accuracy if share is not None]))

    @property
    def macro_f1(self) -> float:
        """The mean of the classes' F1, 2 TP / (2 TP + FP + FN), of those that occur: a fraction 0..1."""
        totals = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
        return float(np.mean(2 * self.confusion.diagonal()[totals > 0] / totals[totals > 0]))

    def __str__(self) -> str:
        return f"accuracy {self.accuracy:.2%}, {self.errors:,} errors in {self.images:,} images"

    def __repr__(self) -> str:
        return f"<Evaluation {self}>"


def _checked(
    logits: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.floating[Any]], npt.NDArray[np.int64]]:
    scores, truth = np.asarray(logits), np.asarray(labels)
    if scores.dtype.kind != "f":
        scores = scores.astype(np.float64)
    if scores.ndim != 2 or scores.size == 0 or truth.shape != scores.shape[:1]:
        raise DataError(
            f"nothing to evaluate: logits of shape {scores.shape} and labels of shape {truth.shape}; "
            "expected (images, classes) and (images,), with at least one image."
        )
    if truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise DataError(
            f"labels {truth.min()} to {truth.max()} do not match a network of {scores.shape[1]} classes; "
            "use the data set that the network was trained for."
        )
    if not np.isfinite(scores).all():
        raise NonFiniteError("the network's outputs are not finite numbers: its weights are not usable.")
    return scores, truth.astype(np.int64)


def standard_error(share: float, number: int) -> float:
    """Returns the standard error of a share, from two more successes and two more failures than were counted.

    So a share of 1 has one above 0 (Agresti and Coull, "Approximate is Better than 'Exact' for Interval
    Estimation of Binomial Proportions", 1998).

    Args:
        share: 0 to 1.
        number: number of images that it was counted on.
    """
    adjusted = (share * number + 2) / (number + 4)
    return math.sqrt(adjusted * (1 - adjusted) / (number + 4))


class Fidelity(NamedTuple):
    """A student's agreement with a teacher on the same images.

    Attributes:
        agreement: fraction 0..1 of the images with the same prediction, right or wrong.
        divergence: mean of KL(teacher || student) at temperature 1, in nats per image.
    """

    agreement: float
    divergence: float


def measure_fidelity(student: npt.ArrayLike, teacher: npt.ArrayLike) -> Fidelity:
    """Returns a student's agreement with a teacher, computed in float64.

    Stanton et al., "Does Knowledge Distillation Really Work?" (2021), section 3.

    Args:
        student: (N, classes) logits of the student.
        teacher: (N, classes) logits of the teacher for the same images.
    """
    log_q = log_softmax(np.asarray(student, np.float64), axis=1)
    log_p = log_softmax(np.asarray(teacher, np.float64), axis=1)
    agreement = float((log_q.argmax(axis=1) == log_p.argmax(axis=1)).mean())
    return Fidelity(agreement, float((np.exp(log_p) * (log_p - log_q)).sum(axis=1).mean()))
