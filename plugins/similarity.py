"""Similarity-preserving distillation: a loss on the similarities between the images of a batch."""

from __future__ import annotations

from kdtrain import FeatureLoss, FeatureMethod, Shape, flow


class Similarity(FeatureMethod):
    """Adds the distance between the two networks' similarity matrices of a batch's images.

    Tung, Mori, "Similarity-Preserving Knowledge Distillation" (2019), section 3, with their weight.
    The matrices are B x B for any kind of layer, for the B images of a batch; with ``--nproc-per-node``, of
    a process's own batch. ``--alpha 0`` removes the soft targets.

    Args:
        student_layer: name of a layer of the student.
        teacher_layer: name of a layer of the teacher.
        weight: the term's weight, above 0.
    """

    def __init__(self, student_layer: str, teacher_layer: str, weight: float = 3000.0) -> None:
        super().__init__(student_layer, teacher_layer, weight)

    def make_loss(self, student: Shape, teacher: Shape) -> FeatureLoss:
        """Returns the loss; the layers may have any shape."""
        return similarity_loss


def similarity_loss(student: flow.Tensor, teacher: flow.Tensor) -> flow.Tensor:
    """Returns the squared distance of the similarity matrices, divided by B^2.

    Args:
        student: features, (B, ...) float32; the gradient flows here.
        teacher: features, (B, ...) float32.

    Returns:
        A float32 scalar, computed in float64.
    """
    with flow.no_grad():
        teacher_similarities = similarities(teacher)
    difference = similarities(student) - teacher_similarities
    return (difference * difference).mean().float()


def similarities(features: flow.Tensor) -> flow.Tensor:
    """Returns the inner products of any two images' features, each row of length 1.

    Args:
        features: (B, ...) float32.

    Returns:
        (B, B) float64.
    """
    flat = features.reshape(len(features), -1).double()
    products = flow.matmul(flat, flat, transpose_b=True)
    # Clamped: the row of an image whose features are all 0 stays 0 and gets no gradient.
    length = (products * products).sum(dim=1, keepdim=True).clamp(min=1e-24).sqrt()
    return products / length
