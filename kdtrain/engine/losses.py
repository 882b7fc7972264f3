"""The two losses of distillation: cross-entropy and Hinton's soft-target loss; a limit on their gradients."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kdtrain.data.loader import Batch
from kdtrain.engine.recorder import Output
from kdtrain.nn import losses
from kdtrain.nn.operations import small_in_numpy
from kdtrain.runtime import flow
from kdtrain.runtime.processor import zero_upper_avx

F = flow.nn.functional

_SMALL = 20_000
"""Elements up to which ``vector_norm`` is exact to 2e-6: it adds one after another, which is off by 3e-4 in a
million, and ``dot`` takes longer for few."""


def cross_entropy(batch: Batch, output: Output) -> flow.Tensor:
    """Returns the cross-entropy against the labels.

    Args:
        batch: its ``targets`` are the labels, (B,) int64; a mixed image has two, weighted by their shares.
            Images without labels do not count.
        output: its ``logits`` are (B, C) float32.

    Returns:
        A float32 scalar: the mean over the images, in nats.
    """
    if _runs_in_numpy(output.logits):
        mixed = None if batch.mixup_targets is None else (batch.mixup_targets, batch.mixup_lambda)
        node = losses.CrossEntropy(
            batch.labels, batch.labelled, batch.label_count, mixed, batch.class_weights
        )
        return node.apply(output.logits)
    # OneFlow's float32 is off in the seventh digit, and training enlarges that: processes that train together
    # would not end with the weights of one process.
    logits = output.logits.double()
    return batch.label_loss(lambda labels: F.cross_entropy(logits, labels, reduction="none")).float()


def soft_target_loss(
    student_logits: flow.Tensor, teacher_logits: flow.Tensor, temperature: float
) -> flow.Tensor:
    """Returns T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over the images.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2. The
    factor T^2 keeps the gradient's size when T changes. The sum over the classes is divided by the
    number of images only ("batchmean"). Both distributions are computed in log space and in float64,
    because a difference of nearly equal logarithms, times T^2, loses float32's digits.

    Args:
        student_logits: (B, C) float32; the gradient flows here.
        teacher_logits: (B, C) float32; no gradient flows here.
        temperature: T, above 0.

    Returns:
        A float32 scalar, in nats times T^2.
    """
    if _runs_in_numpy(student_logits):
        return losses.SoftTargetLoss(teacher_logits, temperature).apply(student_logits)
    log_student = F.log_softmax(student_logits.double() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits.detach().double() / temperature, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum()
    return (divergence * (temperature**2 / student_logits.shape[0])).float()


def _runs_in_numpy(logits: flow.Tensor) -> bool:
    return logits.ndim == 2 and logits.dtype == flow.float32 and small_in_numpy(logits)


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
    if all(map(small_in_numpy, gradients)):
        arrays = [gradient.to_numpy() for gradient in gradients]  # views of their memory
        with np.errstate(all="ignore"):
            length = np.float32(math.sqrt(sum(map(_square, arrays))))
            share = np.minimum(limit / length, 1.0) + length * 0.0
            for array in arrays:
                array *= np.float32(share)
        return
    norm = flow.linalg.vector_norm(flow.stack([_norm(gradient) for gradient in gradients]))
    zero_upper_avx()
    factor = (limit / norm).clamp(max=1.0) + norm * 0.0  # NaN if the norm is not finite
    for gradient in gradients:
        gradient.mul_(factor)


def _square(array: npt.NDArray[np.float32]) -> float:
    """Returns the sum of squares. It is added up in parts, which keeps float32's digits."""
    flat = array.reshape(-1)
    parts = (flat[start : start + _SMALL] for start in range(0, len(flat), _SMALL))
    return sum(float(np.vdot(part, part)) for part in parts)


def _norm(gradient: flow.Tensor) -> flow.Tensor:
    if gradient.numel() <= _SMALL:
        return flow.linalg.vector_norm(gradient)
    flat = gradient.reshape(-1)
    return flow.dot(flat, flat).sqrt()
