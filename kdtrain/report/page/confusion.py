"""The confusions in ``report.html``: a matrix, or for many classes the most frequent pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdtrain.metrics.evaluation import Evaluation

MOST_CLASSES = 20
"""Classes of the largest matrix that is shown."""

_PAIRS = 15


@dataclass(frozen=True)
class Confusions:
    """Numbers of test images by true class and prediction: means over a model's seeds.

    Attributes:
        matrix: (classes, classes) float64; rows are the truth, columns the prediction.
        most: the largest value off the diagonal, or 1 if all are 0.
        pairs: (truth, prediction, images) of the most frequent mistakes, in descending order.
    """

    matrix: npt.NDArray[np.float64]
    most: float
    pairs: tuple[tuple[int, int, float], ...]


def confusions(logits: Sequence[npt.NDArray[np.float32]], labels: npt.NDArray[np.int64]) -> Confusions:
    """Returns the confusions of a model.

    Args:
        logits: (images, classes) float32, of each seed.
        labels: (images,) int64, the true classes.
    """
    matrix = np.mean([Evaluation.from_logits(scores, labels).confusion for scores in logits], axis=0)
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_PAIRS]
    positions = [divmod(index, len(mistakes)) for index in order.tolist()]
    pairs = tuple((t, p, float(mistakes[t, p])) for t, p in positions if mistakes[t, p])
    return Confusions(matrix, float(mistakes.max()) or 1.0, pairs)
