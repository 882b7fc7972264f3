"""Similarity-preserving distillation: images that are alike to the teacher are to be so to the student."""

from __future__ import annotations

from kdtrain import Batch, NeedsTeacher, Objective, Output, UsageError, flow


class Similarity(NeedsTeacher):
    """Adds the distance between the two networks' tables of similarities between a batch's images.

    Tung, Mori, "Similarity-Preserving Knowledge Distillation" (2019), section 3, with their weight.
    The tables are b x b for any kind of layer. Where processes share a batch, they are those of each
    one's part. Without soft targets: ``--alpha 0``.

    Args:
        student_layer: name of a layer of the student.
        teacher_layer: name of a layer of the teacher.
        weight: above 0.
    """

    def __init__(self, student_layer: str, teacher_layer: str, weight: float = 3000.0) -> None:
        if not 0.0 < weight < float("inf"):
            raise UsageError(f"weight={weight}: it must be above 0.")
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self.weight = weight

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective with the term ``similarity``."""
        self.teacher = objective.teacher
        objective.student.record(self.student_layer)
        self.teacher.record(self.teacher_layer)
        return objective.add("similarity", self.loss, self.weight)

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the loss of ``similarity_loss`` for the two layers."""
        teacher = self.teacher.features(batch)[self.teacher_layer]
        return similarity_loss(output.features[self.student_layer], teacher)


def similarity_loss(student: flow.Tensor, teacher: flow.Tensor) -> flow.Tensor:
    """Returns the squared distance of the similarity tables, divided by b^2, from float64.

    Args:
        student: (b, ...); the gradient flows here.
        teacher: (b, ...).
    """
    with flow.no_grad():
        theirs = similarities(teacher)
    difference = similarities(student) - theirs
    return (difference * difference).mean().float()


def similarities(features: flow.Tensor) -> flow.Tensor:
    """Returns the inner products of each two images' features, (b, b), each row of length 1."""
    flat = features.reshape(len(features), -1).double()
    table = flow.matmul(flat, flat, transpose_b=True)
    # A row of zeros, as of an image that no unit responds to, stays one and gets no gradient.
    length = (table * table).sum(dim=1, keepdim=True).clamp(min=1e-24).sqrt()
    return table / length
