"""How closely a student follows its teacher."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax


class Fidelity(NamedTuple):
    """How far a student agrees with a teacher on the same images.

    Attributes:
        agreement: fraction 0..1 of the images that both put into the same class, right or wrong.
        divergence: mean of KL(teacher || student) at temperature 1, in nats per image.
    """

    agreement: float
    divergence: float


def measure_fidelity(student: npt.ArrayLike, teacher: npt.ArrayLike) -> Fidelity:
    """Returns how far a student's logits (N, classes) go with a teacher's, in float64.

    Stanton et al., "Does Knowledge Distillation Really Work?" (2021), section 3.
    """
    ours, theirs = (log_softmax(np.asarray(logits, np.float64), axis=1) for logits in (student, teacher))
    agreement = float((ours.argmax(axis=1) == theirs.argmax(axis=1)).mean())
    return Fidelity(agreement, float((np.exp(theirs) * (theirs - ours)).sum(axis=1).mean()))
