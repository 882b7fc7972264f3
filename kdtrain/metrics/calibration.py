"""Calibration: a network's confidence compared with its accuracy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

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
