"""The confusions that ``report.html`` shows: a matrix, or for many classes the most frequent pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kdtrain.metrics.evaluation import Evaluation

MOST_CLASSES = 20
"""Of a matrix that can still be read."""

_PAIRS = 15


@dataclass(frozen=True)
class Confusions:
    """What a model takes for what, in images per network: means over its seeds.

    Attributes:
        matrix: (classes, classes); rows are the truth, columns the prediction.
        most: the largest number off the diagonal, or 1.
        pairs: truth, prediction and number, the most frequent mistakes first.
    """

    matrix: npt.NDArray[np.float64]
    most: float
    pairs: tuple[tuple[int, int, float], ...]


def confusions(logits: Sequence[npt.NDArray[np.float32]], labels: npt.NDArray[np.int64]) -> Confusions:
    """Returns the confusions of a model.

    Args:
        logits: (images, classes) of each seed.
        labels: (images,) the true classes.
    """
    matrix = np.mean([Evaluation.from_logits(scores, labels).confusion for scores in logits], axis=0)
    mistakes = matrix.copy()
    np.fill_diagonal(mistakes, 0)
    order = np.argsort(-mistakes, axis=None, kind="stable")[:_PAIRS]
    rows, columns = (side.tolist() for side in np.unravel_index(order, mistakes.shape))
    pairs = tuple((t, p, float(mistakes[t, p])) for t, p in zip(rows, columns, strict=True) if mistakes[t, p])
    return Confusions(matrix, float(mistakes.max()) or 1.0, pairs)
