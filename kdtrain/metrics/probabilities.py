"""From a network's logits to the classes' probabilities, hard and softened."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from kdtrain.errors import KdtrainError


def probabilities(logits: npt.ArrayLike, temperature: float) -> npt.NDArray[np.float64]:
    """Returns the classes' probabilities, ``exp(z_i / T) / sum_j exp(z_j / T)``, in float64.

    Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network", section 2, equation 1.

    Args:
        logits: (classes,) the network's outputs z.
        temperature: T; 1 gives the network's own probabilities, more gives softer ones.

    Raises:
        ValueError: the temperature is not a positive, finite number.
        KdtrainError: a logit is not finite.
    """
    if not 0 < temperature < np.inf:
        raise ValueError(f"the temperature must be a positive number, got {temperature}")
    scores = np.asarray(logits, dtype=np.float64)
    if not np.isfinite(scores).all():
        raise KdtrainError("the network's outputs are not finite numbers: its weights are not usable.")
    return np.asarray(softmax((scores - scores.max()) / temperature))
