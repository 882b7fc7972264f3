"""Gradient clipping: a limit on the norm of all gradients together."""

from __future__ import annotations

from kdtrain.runtime import flow
from kdtrain.runtime.processor import zero_upper_avx

_SMALL = 20_000
"""Elements up to which ``vector_norm`` is exact to 2e-6: it adds one after another, which is off by 3e-4 in a
million, and ``dot`` takes longer for few."""


def clip_gradients(optimizer: flow.optim.Optimizer, limit: float) -> None:
    """Scales all gradients by one factor if their Euclidean norm, taken together, is above ``limit``.

    Pascanu, Mikolov, Bengio, "On the difficulty of training recurrent neural networks" (2013), section 3.2.
    If the norm is not finite, or has squares beyond float32, all gradients become NaN, and so do the weights:
    the next loss shows it. OneFlow's ``clip_grad_norm_`` sets most of them to zero instead.

    Nothing here waits for the numbers, because reading one is slow between two steps.

    Args:
        optimizer: its parameters' gradients, float32 tensors of any shape, change in place. Parameters may
            have none.
        limit: the largest norm, above 0.
    """
    parameters = [p for group in optimizer.param_groups for p in group.parameters]
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return
    norm = flow.linalg.vector_norm(flow.stack([_norm(gradient) for gradient in gradients]))
    zero_upper_avx()
    factor = (limit / norm).clamp(max=1.0) + norm * 0.0  # NaN if the norm is not finite
    for gradient in gradients:
        gradient.mul_(factor)


def _norm(gradient: flow.Tensor) -> flow.Tensor:
    if gradient.numel() <= _SMALL:
        return flow.linalg.vector_norm(gradient)
    flat = gradient.reshape(-1)
    return flow.dot(flat, flat).sqrt()
