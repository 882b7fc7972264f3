"""Variational information distillation: a trained Gaussian of a teacher's layer, given the student's."""

from __future__ import annotations

import math

from kdtrain import Conv2d, FeatureLoss, FeatureMethod, Shape, flow

F = flow.nn.functional

_EPSILON = 1e-5
_INITIAL_VARIANCE = 5.0


class Vid(FeatureMethod):
    """Adds the negative log likelihood of a teacher's layer under a Gaussian that the student's layer gives.

    Ahn et al., "Variational Information Distillation for Knowledge Transfer" (CVPR 2019), section 2.1,
    equation 5. The mean is a small network of the student's features. Each channel of the teacher has a
    variance of its own, which is trained as well (megvii-research/mdistiller leaves it as it is). Layers,
    initial variance and weight are those of HobbitLong/RepDistiller (distiller_zoo/VID.py). The loss is a
    mean over all values instead of a sum, as there, and constants are left out, so it may be below 0. Between
    maps, the larger ones are averaged down. If either layer has no maps, the other's are averaged over their
    pixels, and each of the teacher's values is a channel. ``--alpha 0`` removes the soft targets.

    Card:
        Copies: the values of an inner layer, with a trained variance: what the student cannot predict counts
            less.
        Helps: where parts of the teacher's layer are beyond the student.
        Hurts: few images: map and variances are learnt from them, too.
        Cost: a small trained network beside the student, and the teacher's layer on disk.
        Measured: against the plain student. mnist, student_mlp, 5000 images: +0.25 points, 2.1 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +1.05 points, 2.5 x the epoch; mnist, student_mlp, 5000
            labels: +1.01 points, 3.5 x the epoch. See docs/methods.md.

    Args:
        student_layer: name of a layer of the student; ``auto`` chooses.
        teacher_layer: name of a layer of the teacher; ``auto`` chooses.
        weight: the term's weight, above 0.
    """

    def __init__(self, student_layer: str = "auto", teacher_layer: str = "auto", weight: float = 1.0) -> None:
        super().__init__(student_layer, teacher_layer, weight)

    def make_loss(self, student: Shape, teacher: Shape) -> FeatureLoss:
        """Returns the loss, with new weights."""
        return Gaussian(student, teacher)


class Gaussian(flow.nn.Module):
    """The negative log likelihood of the teacher's features, with a trained mean and variance.

    Args:
        student: the shape of the student's features for one image.
        teacher: the shape of the teacher's features for one image.
    """

    def __init__(self, student: Shape, teacher: Shape) -> None:
        super().__init__()
        maps = len(student) == len(teacher) == 3
        self.size = tuple(map(min, student[1:], teacher[1:])) if maps else None
        width = teacher[0]
        self.mean = flow.nn.Sequential(
            _linear(student[0], width, maps),
            flow.nn.ReLU(),
            _linear(width, width, maps),
            flow.nn.ReLU(),
            _linear(width, width, maps),
        )
        initial = math.log(math.expm1(_INITIAL_VARIANCE - _EPSILON))
        self.rho = flow.nn.Parameter(flow.ones(width) * initial)

    def variance(self) -> flow.Tensor:
        """Returns the variance of each channel: softplus(rho) + 1e-5, (C,) float64."""
        return F.softplus(self.rho.double()) + _EPSILON

    def forward(self, student: flow.Tensor, teacher: flow.Tensor) -> flow.Tensor:
        """Returns the mean of ((mean - teacher)^2 / variance + log variance) / 2 over all values.

        Args:
            student: features, (B, ...) float32; the gradient flows here.
            teacher: features, (B, ...) float32.

        Returns:
            A float32 scalar, in nats per value.
        """
        difference = self.mean(self._sized(student)) - self._sized(teacher)
        # The mean over images and pixels comes first, because broadcast products of maps are slow.
        squares = (difference * difference).mean(dim=(0, 2, 3) if self.size else 0).double()
        variance = self.variance()
        return ((squares / variance + variance.log()).mean() * 0.5).float()

    def _sized(self, features: flow.Tensor) -> flow.Tensor:
        """Returns maps of the common size, or (B, C) vectors."""
        if self.size is None:
            return features.reshape(*features.shape[:2], -1).mean(dim=2) if features.ndim > 2 else features
        if tuple(features.shape[2:]) == self.size:
            return features
        return F.adaptive_avg_pool2d(features, self.size)


def _linear(channels: int, width: int, maps: bool) -> flow.nn.Module:
    """Returns a new linear map of channels, without bias, at each pixel or of vectors."""
    return Conv2d(channels, width, 1, bias=False) if maps else flow.nn.Linear(channels, width, bias=False)
