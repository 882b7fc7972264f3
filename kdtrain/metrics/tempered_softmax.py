"""The softmax with a temperature: class probabilities, plain or softened."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from kdtrain.errors import KdtrainError


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
