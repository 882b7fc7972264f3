"""The losses: cross-entropy against labels, and Hinton's against a teacher's softened probabilities."""

from __future__ import annotations

from kdtrain.data.loader import Batch
from kdtrain.engine.recorder import Output
from kdtrain.runtime import flow

F = flow.nn.functional


def cross_entropy(batch: Batch, output: Output) -> flow.Tensor:
    """Returns the mean cross-entropy of the labels, in nats per image."""
    return F.cross_entropy(output.logits, batch.targets)


def soft_target_loss(
    student_logits: flow.Tensor, teacher_logits: flow.Tensor, temperature: float
) -> flow.Tensor:
    """Returns T^2 * KL(softmax(teacher / T) || softmax(student / T)), the mean over the images.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2: the
    factor T^2 keeps the gradient's size when T changes. The sum runs over the classes and is
    divided by the number of images only ("batchmean"). Both distributions are taken in log space
    and in float64: a difference of nearly equal logarithms, times T^2, would lose what float32 has.

    Args:
        student_logits: (B, classes); the gradient flows here.
        teacher_logits: (B, classes); no gradient flows here.
        temperature: T, above 0.

    Returns:
        A float32 scalar, in nats times T^2.
    """
    log_student = F.log_softmax(student_logits.double() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher_logits.detach().double() / temperature, dim=1)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum()
    return (divergence * (temperature**2 / student_logits.shape[0])).float()
