"""Gradient clipping: a limit on the norm of all gradients together."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kdtrain.runtime import flow


def clip_gradients(optimizer: flow.optim.Optimizer, limit: float) -> None:
    """Scales all gradients by one factor if their Euclidean norm, taken together, is above ``limit``.

    Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks" (2013), section 3.2.
    Gradients that are not finite stay as they are, so that the loss shows them.

    OneFlow's ``clip_grad_norm_`` is not used: its norm of a large layer is wrong by 2e-4, and it sets finite
    gradients whose squares overflow to zero.

    Args:
        optimizer: its parameters' gradients, float32 tensors of any shape, change in place. Parameters may
            have none.
        limit: the largest norm, above 0.
    """
    parameters = [p for group in optimizer.param_groups for p in group.parameters]
    gradients = [p.grad for p in parameters if p.grad is not None]
    # NumPy sums in pairs, so that float32 is exact to its last digits; the squares of large numbers overflow.
    norm = _norm(gradients, np.float32)
    if not math.isfinite(norm):
        norm = _norm(gradients, np.float64)
    if math.isfinite(norm) and norm > limit:
        for gradient in gradients:
            gradient.mul_(limit / norm)


def _norm(gradients: list[flow.Tensor], dtype: npt.DTypeLike) -> float:
    """Returns the norm, with squares in ``dtype``."""
    with np.errstate(over="ignore"):
        squares = [float(np.square(gradient.numpy(), dtype=dtype).sum()) for gradient in gradients]
    return math.sqrt(math.fsum(squares))
