"""Softmax regression: the teacher's last layer as the judge of the student's features."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from kdtrain import Conv2d, FeatureLoss, FeatureMethod, Objective, Shape, Teacher, UsageError, at_least, flow

F = flow.nn.functional

_PROBES = 4  # random images on which the teacher's last layer is identified
_TOLERANCE = 1e-3  # of the largest logit

Reading = Callable[["flow.Tensor"], "flow.Tensor"]


class Srrl(FeatureMethod):
    """Adds the distance to the teacher's last features, and to its logits by its own last layer.

    Yang et al., "Knowledge Distillation via Softmax Regression Representation Learning" (ICLR 2021),
    section 3: features are mapped from the student's layer, and are to be those that the teacher's last
    linear layer gets, and to give its logits by that layer, which does not change. The map is a 1x1
    convolution with batch normalisation and ReLU, and its result is averaged over the pixels, as in the
    authors' code (jingyang2017/KD_SRRL, distiller_zoo/AIN.py). A layer without maps has a linear layer
    instead of the convolution. Both distances are means over all values, and weigh 1. ``--alpha 0`` gives the
    paper's objective, without soft targets.

    What the teacher's network does between ``teacher_layer`` and its last layer is found out by trying: it
    may be nothing, a ReLU, the mean over the pixels, or both.

    Card:
        Copies: the features that the teacher's last layer reads, so that this layer gives the same logits.
        Helps: where the layer before the last is wide enough to hold the teacher's features.
        Hurts: where the teacher has no single last linear layer: it is refused.
        Cost: a trained map of the features, and the teacher's layer on disk.
        Measured: against the plain student. mnist, student_mlp, 5000 images: +0.85 points, 2.0 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +0.93 points, 2.2 x the epoch; mnist, student_mlp, 5000
            labels: +1.57 points, 3.2 x the epoch. See docs/methods.md.

    Args:
        student_layer: name of a late layer of the student, such as the one before its last; ``auto`` chooses.
        teacher_layer: name of the layer before the teacher's last linear layer; ``auto`` chooses.
        weight: the term's weight, above 0.
        judge: weight of the distance of the logits, beside 1 for that of the features: 0 or more.
    """

    def __init__(
        self,
        student_layer: str = "auto",
        teacher_layer: str = "auto",
        weight: float = 1.0,
        judge: float = 1.0,
    ) -> None:
        super().__init__(student_layer, teacher_layer, weight)
        self.judge = at_least("judge", judge, 0.0)

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective with the loss as one more term.

        Raises:
            UsageError: the teacher has no last linear layer, or ``teacher_layer`` is not the one before it.
        """
        self.teacher, self.images = objective.teacher, objective.student.images
        return super().configure(objective)

    def make_loss(self, student: Shape, teacher: Shape) -> FeatureLoss:
        """Returns the loss, with a new map of the student's features."""
        last = find_last_layer(self.teacher, self.teacher_layer, self.images)
        return JudgedFeatures(student, last, self.judge)


class LastLayer(NamedTuple):
    """A network's last linear layer, as it is used for the logits.

    Attributes:
        layer: the layer.
        reading: returns what the layer gets, (B, D) float32, from the output of the layer before it.
    """

    layer: flow.nn.Module
    reading: Reading

    def logits(self, features: flow.Tensor) -> flow.Tensor:
        """Returns the logits, (B, C) float32, of features (B, D); no gradient flows to the weights."""
        bias = None if self.layer.bias is None else self.layer.bias.detach()
        return F.linear(features, self.layer.weight.detach(), bias)


class JudgedFeatures(flow.nn.Module):
    """The distances of mapped features to those of the teacher, directly and by its last layer.

    Args:
        student: the shape of the student's features for one image.
        last: the teacher's last layer.
        judge: weight of the distance of the logits.
    """

    def __init__(self, student: Shape, last: LastLayer, judge: float) -> None:
        super().__init__()
        self.last = last  # no module, so that its weights are not parameters of this term
        self.judge = judge
        width = last.layer.in_features
        # Without running means, which only an evaluation would use: the map is not part of the student.
        if len(student) == 3:
            linear = Conv2d(student[0], width, 1, bias=False)
            norm = flow.nn.BatchNorm2d(width, track_running_stats=False)
        else:
            linear = flow.nn.Linear(int(np.prod(student)), width, bias=False)
            norm = flow.nn.BatchNorm1d(width, track_running_stats=False)
        flow.nn.init.kaiming_normal_(linear.weight, mode="fan_out", nonlinearity="relu")
        self.map = flow.nn.Sequential(linear, norm, flow.nn.ReLU())

    def forward(self, student: flow.Tensor, teacher: flow.Tensor) -> flow.Tensor:
        """Returns the weighted sum of both mean squared distances: a float32 scalar.

        Args:
            student: features, (B, ...) float32; the gradient flows here.
            teacher: output of the layer before the last, (B, ...) float32.

        Raises:
            UsageError: the batch is a single image, which batch normalisation cannot be trained on.
        """
        if len(student) < 2:
            raise UsageError("srrl normalises a batch: give each process at least 2 images (--batch-size).")
        mapped = _pixel_mean(self.map(student if student.ndim == 4 else student.flatten(1)))
        features = self.last.reading(teacher)
        apart = mapped - features
        logits_apart = self.last.logits(mapped) - self.last.logits(features)
        return (apart * apart).mean() + (logits_apart * logits_apart).mean() * self.judge


def find_last_layer(teacher: Teacher, before: str, images: flow.Tensor) -> LastLayer:
    """Returns the linear layer that makes a teacher's logits from the recorded layer ``before``.

    Each linear layer is tried, the last first, on what each reading makes of the recorded layer's output for
    random images: one that gives the network's logits is the one.

    Args:
        teacher: the teacher, which records ``before`` already.
        before: name of the layer before the last one.
        images: example inputs, (B, C, H, W) float32, for their shape.

    Raises:
        UsageError: the network has no linear layer with an output for each class, or none gives the logits.
    """
    noise = np.random.default_rng(0).normal(size=(_PROBES, *images.shape[1:])).astype(np.float32)
    with flow.no_grad():
        output = teacher(flow.tensor(noise).to(images.device))
        logits, recorded = output.logits, output.features[before]
        layers = {
            name: module
            for name, module in teacher.network.named_modules()
            if isinstance(module, flow.nn.Linear) and module.out_features == logits.shape[1]
        }
        for layer in reversed(list(layers.values())):
            for reading in _READINGS:
                last = LastLayer(layer, reading)
                if _gives(last, recorded, logits):
                    return last
    kind = type(teacher.network).__name__
    if not layers:
        raise UsageError(
            "srrl needs a teacher that ends in a linear layer (flow.nn.Linear) with an output for each "
            f"class, and {kind} has none: choose another teacher, or a method such as fitnet."
        )
    raise UsageError(
        f"the teacher's layer {before!r} is not the one before its last linear layer ({', '.join(layers)} of "
        f"{kind}): choose the layer whose output that one gets, as it is or after a ReLU or the mean over "
        "the pixels."
    )


def _gives(last: LastLayer, recorded: flow.Tensor, logits: flow.Tensor) -> bool:
    features = last.reading(recorded)
    if features.shape[1] != last.layer.in_features:
        return False
    error = np.abs(last.logits(features).numpy() - logits.numpy()).max()
    return bool(error <= _TOLERANCE * np.abs(logits.numpy()).max())


def _flat(x: flow.Tensor) -> flow.Tensor:
    """Returns one vector per image, (B, D)."""
    return x.reshape(len(x), -1)


def _pixel_mean(x: flow.Tensor) -> flow.Tensor:
    """Returns the mean over the pixels, (B, C); vectors stay."""
    return x.reshape(*x.shape[:2], -1).mean(dim=2) if x.ndim > 2 else x


_READINGS: tuple[Reading, ...] = (
    _flat,
    lambda x: _flat(F.relu(x)),
    _pixel_mean,
    lambda x: _pixel_mean(F.relu(x)),
)
