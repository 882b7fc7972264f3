"""Class probabilities: the softmax with a temperature, and how far their confidence is from accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from kdtrain.errors import KdtrainError
from kdtrain.runtime.limits import in_slices

BINS = 15
"""Number of bins, as in the paper; ten thousand images fill that many."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Images sorted into bins of equal width by the probability of the predicted class.

    Attributes:
        counts: (bins,) int64, images in each bin.
        accuracy: (bins,) float64, fraction 0..1 that was recognised; 0 where a bin has no images.
        confidence: (bins,) float64, mean probability 0..1; 0 where a bin has no images.
        error: the expected calibration error, 0..1.
    """

    counts: npt.NDArray[np.int64]
    accuracy: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    error: float


def reliability(logits: npt.ArrayLike, targets: npt.ArrayLike, bins: int = BINS) -> Reliability:
    """Returns a network's reliability and expected calibration error, computed in float64.

    The expected calibration error is the mean distance between a bin's accuracy and its mean
    probability, weighted by the bin's images: Guo et al., "On Calibration of Modern Neural Networks"
    (2017), section 2, equation 3.

    Args:
        logits: (N, classes), any float dtype.
        targets: (N,) integers, the true classes.
        bins: number of bins of equal width over 0..1; a bin includes its upper end.
    """
    scores, truth = np.asarray(logits), np.asarray(targets)
    confidence = np.empty(len(scores))
    for few in in_slices(scores.shape):  # in slices to bound the memory for float64
        confidence[few] = softmax(scores[few].astype(np.float64), axis=1).max(axis=1)
    right = scores.argmax(axis=1) == truth
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    hits = np.bincount(index, right, bins)
    sums = np.bincount(index, confidence, bins)
    images = np.maximum(counts, 1)
    return Reliability(counts, hits / images, sums / images, float(np.abs(hits - sums).sum() / len(truth)))


_SMALLEST = 1e-7
"""Lower bound of probabilities before the logarithm: those of an int8 network are 0 below 1/512."""


def tempered_softmax(logits: npt.ArrayLike, temperature: float) -> npt.NDArray[np.float64]:
    """Returns class probabilities ``exp(z_i / T) / sum_j exp(z_j / T)``.

    Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2, equation 1.

    Args:
        logits: (classes,) the network's logits z.
        temperature: T; 1 gives the network's own probabilities, a higher value softer ones.

    Returns:
        (classes,) float64, 0..1.

    Raises:
        ValueError: the temperature is not a positive, finite number.
        KdtrainError: a logit is not finite.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"the temperature must be a positive number, got {temperature}")
    z = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(z).all():
        raise KdtrainError("the network's outputs are not finite numbers: its weights are not usable.")
    return np.asarray(softmax(z / temperature))


def are_probabilities(outputs: npt.NDArray[np.float32]) -> bool:
    """Returns whether a network's outputs, (N, classes), are probabilities."""
    return bool(probability_rows(outputs).all())


def probability_rows(outputs: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """Returns which rows, (N,) bool, of (N, classes) are probabilities: no number below 0, a sum of 1.

    The sums of an int8 network's probabilities are up to a few per cent off.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # sums of logits may be infinite or NaN
        is_one = np.abs(outputs.sum(axis=1) - 1.0) < 0.05
    rows: npt.NDArray[np.bool_] = is_one & (outputs.min(axis=1) >= 0.0)
    return rows


def to_logits(probabilities: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Returns logarithms of probabilities, whose softmax they are again, (N, classes) float32."""
    logits: npt.NDArray[np.float32] = np.log(np.maximum(probabilities, np.float32(_SMALLEST)))
    return logits
