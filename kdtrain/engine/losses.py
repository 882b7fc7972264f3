"""The two losses of distillation: cross-entropy against labels, and Hinton's soft-target loss."""

from __future__ import annotations

from kdtrain.data.loader import Batch
from kdtrain.engine.recorder import Output
from kdtrain.runtime import flow

F = flow.nn.functional


def cross_entropy(batch: Batch, output: Output) -> flow.Tensor:
    """Returns the cross-entropy against the labels.

    Args:
        batch: its ``targets`` are the labels, (B,) int64; a mixed image has two, weighted by their shares.
            Images without labels do not count.
        output: its ``logits`` are (B, C) float32.

    Returns:
        A float32 scalar: the mean over the images, in nats.
    """
    if batch.mixup_targets is None and batch.labelled is None:
        return F.cross_entropy(output.logits, batch.targets)
    return batch.label_loss(lambda labels: F.cross_entropy(output.logits, labels, reduction="none"))


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
    log_student = F.log_softmax(student_logits.double() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits.detach().double() / temperature, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum()
    return (divergence * (temperature**2 / student_logits.shape[0])).float()
