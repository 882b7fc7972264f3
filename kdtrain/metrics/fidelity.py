"""Fidelity: the agreement of a student with its teacher."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy.special import log_softmax


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
