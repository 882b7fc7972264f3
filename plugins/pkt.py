"""Probabilistic knowledge transfer: a loss on which images of a batch are each other's neighbours."""

from __future__ import annotations

from kdtrain import FeatureLoss, FeatureMethod, Shape, flow

_EPSILON = 1e-7


class Pkt(FeatureMethod):
    """Adds the divergence between the networks' probabilities that one image is another's neighbour.

    Passalis, Tefas, "Learning Deep Representations with Probabilistic Knowledge Transfer" (ECCV 2018),
    section 3, with the cosine kernel, as in the authors' code (passalis/probabilistic_kt) and in
    megvii-research/mdistiller (distillers/PKT.py). Those take the mean over all pairs of images, with the
    weight 30,000. The loss here is the mean over the images, so that it does not depend on the size of the
    batch. Its weight is about 30,000 / 64, which is the same for their batches of 64. It is computed in
    float64. Feature maps are averaged over their pixels. The probabilities are those within a batch; with
    ``--nproc-per-node``, within a process's own batch. ``--alpha 0`` removes the soft targets.

    Card:
        Copies: which images of a batch are neighbours of each other in an inner layer.
        Helps: layers of different width: only relations are compared.
        Hurts: small batches: there are few neighbours.
        Cost: a product of the batch's features with themselves, in float64.
        Measured: against the plain student. mnist, student_mlp, 5000 images: +0.88 points, 2.2 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +1.25 points, 2.6 x the epoch; mnist, student_mlp, 5000
            labels: +1.48 points, 3.4 x the epoch. See docs/methods.md.

    Args:
        student_layer: name of a layer of the student; ``auto`` chooses.
        teacher_layer: name of a layer of the teacher; ``auto`` chooses.
        weight: the term's weight, above 0.
    """

    def __init__(
        self, student_layer: str = "auto", teacher_layer: str = "auto", weight: float = 470.0
    ) -> None:
        super().__init__(student_layer, teacher_layer, weight)

    def make_loss(self, student: Shape, teacher: Shape) -> FeatureLoss:
        """Returns the loss; the layers may have any shape."""
        return pkt_loss


def pkt_loss(student: flow.Tensor, teacher: flow.Tensor) -> flow.Tensor:
    """Returns the divergence of the neighbours' probabilities, the mean over the images.

    Args:
        student: features, (B, ...) float32; the gradient flows here.
        teacher: features, (B, ...) float32.

    Returns:
        A float32 scalar, in nats per image.
    """
    with flow.no_grad():
        p = neighbours(teacher)
        log_p = (p + _EPSILON).log()
    log_q = (neighbours(student) + _EPSILON).log()
    return (p * (log_p - log_q)).sum(dim=1).mean().float()


def neighbours(features: flow.Tensor) -> flow.Tensor:
    """Returns the probabilities that an image's neighbour is another: (1 + cosine) / 2, each row of sum 1.

    Args:
        features: (B, D) or (B, C, ...) float32; of the latter, each channel's mean is taken.

    Returns:
        (B, B) float64. An image counts among its own neighbours.
    """
    if features.ndim > 2:
        features = features.reshape(*features.shape[:2], -1).mean(dim=2)
    features = features.double()
    # Clamped: an image whose features are all 0 gets no gradient.
    length = (features * features).sum(dim=1, keepdim=True).clamp(min=1e-24).sqrt()
    unit = features / (length + _EPSILON)
    kernel = (flow.matmul(unit, unit, transpose_b=True) + 1.0) * 0.5
    return kernel / kernel.sum(dim=1, keepdim=True)
