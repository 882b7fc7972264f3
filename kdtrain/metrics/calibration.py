"""Whether a network is as sure as it is right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from kdtrain.runtime.slices import in_slices

BINS = 15
"""As in the paper; few enough for ten thousand images to fill."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Images sorted into bins of equal width by the probability of the predicted class.

    Attributes:
        counts: (bins,) images in each bin.
        accuracy: (bins,) fraction 0..1 of them that was recognised; 0 where a bin has no images.
        confidence: (bins,) their mean probability, 0..1; 0 where a bin has no images.
        error: the expected calibration error, 0..1.
    """

    counts: npt.NDArray[np.int64]
    accuracy: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    error: float


def reliability(logits: npt.ArrayLike, targets: npt.ArrayLike, bins: int = BINS) -> Reliability:
    """Returns how a network's probabilities go with its accuracy, in float64.

    The expected calibration error is the mean distance between a bin's accuracy and its mean
    probability, weighted by the bin's images: Guo et al., "On Calibration of Modern Neural Networks"
    (2017), section 2, equation 3.

    Args:
        logits: (N, classes).
        targets: (N,) the true classes.
        bins: of equal width over 0 to 1; a bin includes its upper end.
    """
    scores, truth = np.asarray(logits), np.asarray(targets)
    confidence = np.empty(len(scores))
    for few in in_slices(scores.shape):  # all at once, they would take many times the memory
        confidence[few] = softmax(scores[few].astype(np.float64), axis=1).max(axis=1)
    right = scores.argmax(axis=1) == truth
    index = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    counts = np.bincount(index, minlength=bins)
    hits, sums = (np.bincount(index, values, bins) for values in (right, confidence))
    accuracy, mean = (np.divide(x, counts, out=np.zeros(bins), where=counts > 0) for x in (hits, sums))
    return Reliability(counts, accuracy, mean, float(np.abs(hits - sums).sum() / len(truth)))
