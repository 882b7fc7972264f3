"""Similarity-preserving distillation: images that are alike to the teacher are to be so to the student."""

from __future__ import annotations

from kdtrain import FeatureLoss, FeatureMethod, NeedsWholeBatch, Shape, flow


class Similarity(FeatureMethod, NeedsWholeBatch):
    """Adds the distance between the two networks' tables of similarities between a batch's images.

    Tung, Mori, "Similarity-Preserving Knowledge Distillation" (2019), section 3, with their weight.
    The tables are b x b for any kind of layer, of the b images of a process's batch. Without soft
    targets: ``--alpha 0``.

    Args:
        student_layer: name of a layer of the student.
        teacher_layer: name of a layer of the teacher.
        weight: above 0.
    """

    def __init__(self, student_layer: str, teacher_layer: str, weight: float = 3000.0) -> None:
        super().__init__(student_layer, teacher_layer, weight)

    def make_loss(self, student: Shape, teacher: Shape) -> FeatureLoss:
        """Returns the loss, for layers of any shape."""
        return similarity_loss


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
