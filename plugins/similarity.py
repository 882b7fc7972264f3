"""Similarity-preserving distillation: a loss on the similarities between the images of a batch."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdtrain import FeatureLoss, FeatureMethod, Shape, flow

Array = npt.NDArray[np.float64]

_SHORTEST = 1e-12  # a row that is shorter counts as zeros


class Similarity(FeatureMethod):
    """Adds the distance between the two networks' similarity matrices of a batch's images.

    Tung, Mori, "Similarity-Preserving Knowledge Distillation" (2019), section 3, with their weight.
    The matrices are B x B for any kind of layer, for the B images of a batch; with ``--nproc-per-node``, of
    a process's own batch. ``--alpha 0`` removes the soft targets.

    Card:
        Copies: how similar the images of a batch are to each other in an inner layer.
        Helps: layers of different width: only relations are compared.
        Hurts: with the paper's weight, which is for deep networks, small students learn less of their labels.
        Cost: a product of the batch's features with themselves.
        Measured: against the plain student. mnist, student_mlp, 5000 images: +0.28 points, 1.8 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +0.98 points, 1.9 x the epoch; mnist, student_mlp, 5000
            labels: +1.48 points, 2.5 x the epoch. See docs/methods.md.

    Args:
        student_layer: name of a layer of the student; ``auto`` chooses.
        teacher_layer: name of a layer of the teacher; ``auto`` chooses.
        weight: the term's weight, above 0.
    """

    def __init__(
        self, student_layer: str = "auto", teacher_layer: str = "auto", weight: float = 3000.0
    ) -> None:
        super().__init__(student_layer, teacher_layer, weight)

    def make_loss(self, student: Shape, teacher: Shape) -> FeatureLoss:
        """Returns the loss; the layers may have any shape."""
        return similarity_loss


def similarity_loss(student: flow.Tensor, teacher: flow.Tensor) -> flow.Tensor:
    """Returns the squared distance of the similarity matrices, divided by B^2.

    It is computed by NumPy, with the gradient in closed form, because float64 products are slow in OneFlow.

    Args:
        student: features, (B, ...) float32; the gradient flows here.
        teacher: features, (B, ...) float32.

    Returns:
        A float32 scalar, computed in float64.
    """
    flat = _flat(student)
    rows, scale = similarities(flat)
    difference = rows - similarities(_flat(teacher))[0]
    slope = 2 / difference.size * difference
    slope = (slope - rows * (slope * rows).sum(axis=1, keepdims=True)) * scale  # by the products
    slopes = ((slope + slope.T) @ flat).astype(np.float32).reshape(student.shape)
    linear = (student * flow.from_numpy(slopes).to(student.device)).sum()
    return linear - linear.detach() + float(np.square(difference).mean())  # has the gradient ``slopes``


def similarities(features: Array) -> tuple[Array, Array]:
    """Returns the inner products of any two images' features, each row of length 1.

    Args:
        features: (B, D) float64.

    Returns:
        The rows, (B, B), and what each was multiplied by, (B, 1). The row of an image whose features are all
        0 stays as it is, and the factor 0 keeps its gradient finite.
    """
    products = features @ features.T
    length = np.sqrt(np.square(products).sum(axis=1, keepdims=True))
    scale = np.divide(1.0, length, out=np.zeros_like(length), where=length > _SHORTEST)
    return products * scale, scale


def _flat(features: flow.Tensor) -> Array:
    """Returns one vector per image, (B, D) float64, without gradient."""
    array: Array = features.detach().numpy().reshape(len(features), -1).astype(np.float64)
    return array
