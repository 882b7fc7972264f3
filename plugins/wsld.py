"""Weighted soft labels: less distillation for images that the student knows better than the teacher."""

from __future__ import annotations

from kdtrain import Batch, LogitMethod, Output, flow, positive

F = flow.nn.functional

_EPSILON = 1e-7


class Wsld(LogitMethod):
    """Weighs each image's soft targets by the losses that student and teacher have on its label.

    Zhou et al., "Rethinking Soft Labels for Knowledge Distillation: A Bias-Variance Tradeoff Perspective"
    (ICLR 2021), the weighted soft labels: the weight is 1 - exp(-CE_student / CE_teacher), without gradient.
    The defaults are the paper's for CIFAR-100; for ImageNet it has temperature=2, weight=2.5. The authors'
    code (bellymonster/Weighted-Soft-Label-Distillation, knowledge_distiller.py) has the cross-entropy in the
    place of the divergence: the gradient is the same, and the divergence is 0 for a student like its teacher.
    The loss is computed in float64. A mixed image has it for either label. It replaces the soft targets,
    under their weight; ``--alpha 0.5`` gives the paper's sum with the labels' loss.

    Card:
        Copies: the softened probabilities, less of them for an image that the student knows better than the
            teacher.
        Helps: where the teacher errs on images that the student has learnt.
        Hurts: where labels are few: images without a label teach nothing.
        Cost: one cross-entropy of both networks more.
        Measured: against the plain student. mnist, student_mlp, 5000 images: -0.02 points, 1.5 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +0.89 points, 1.5 x the epoch; mnist, student_mlp, 5000
            labels: -0.10 points, 2.1 x the epoch. See docs/methods.md.

    Args:
        temperature: T, above 0.
        weight: multiplies the loss, above 0.
    """

    def __init__(self, temperature: float = 4.0, weight: float = 2.25) -> None:
        self.temperature = positive("temperature", temperature)
        self.weight = positive("weight", weight)

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the weighted mean over the images: a float32 scalar, in nats times T^2."""
        teacher = self.teacher.logits(batch)
        divergences = soft_divergences(output.logits, teacher, self.temperature)

        def losses(labels: flow.Tensor) -> flow.Tensor:
            return divergences * image_weights(output.logits, teacher, labels)

        return batch.label_loss(losses).float()


def soft_divergences(student: flow.Tensor, teacher: flow.Tensor, temperature: float) -> flow.Tensor:
    """Returns T^2 KL(softmax(teacher / T) || softmax(student / T)) of each image.

    Args:
        student: logits, (B, C) float32; the gradient flows here.
        teacher: logits, (B, C) float32; no gradient flows here.
        temperature: T.

    Returns:
        (B,) float64, in nats times T^2.
    """
    log_student = F.log_softmax(student.double() / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.detach().double() / temperature, dim=1)
    return (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1) * temperature**2


def image_weights(student: flow.Tensor, teacher: flow.Tensor, labels: flow.Tensor) -> flow.Tensor:
    """Returns 1 - exp(-CE_student / (CE_teacher + 1e-7)) of each image, without gradient.

    It is near 0 where the student's loss on the label is far below the teacher's, and near 1 where it is far
    above.

    Args:
        student: logits, (B, C) float32.
        teacher: logits, (B, C) float32.
        labels: (B,) int64.

    Returns:
        (B,) float64, 0 to 1.
    """
    column = labels.unsqueeze(1)
    with flow.no_grad():
        student_loss, teacher_loss = (
            -F.log_softmax(logits.double(), dim=1).gather(1, column).squeeze(1)
            for logits in (student, teacher)
        )
        return 1.0 - (-student_loss / (teacher_loss + _EPSILON)).exp()
