"""Logit matching: the squared distance between the logits themselves."""

from __future__ import annotations

from kdtrain import Batch, LogitMethod, Output, flow, positive


class LogitMse(LogitMethod):
    """Moves the student's logits to the teacher's, up to a constant per image.

    Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.1: the limit
    of T^2 KL for a high temperature, 1/(2 classes) times the squared distance of logits that have
    mean 0. The loss replaces the soft targets, under their weight.

    Card:
        Copies: the logits, up to a constant for each image.
        Helps: where the student can follow: the loss counts all classes alike, also those that are never
            confused.
        Hurts: small students: they spend their weights on the logits of improbable classes.
        Cost: that of soft targets.
        Measured: against the plain student. mnist, student_mlp, 5000 images: +0.28 points, 1.3 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +0.38 points, 1.2 x the epoch; mnist, student_mlp, 5000
            labels: +0.71 points, 2.0 x the epoch. See docs/methods.md.

    Args:
        weight: multiplies the loss, above 0.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = positive("weight", weight)

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns half the squared distance of centred logits per class: a float32 scalar.

        It is the mean over the images, in squared logits.
        """
        difference = output.logits.double() - self.teacher.logits(batch).double()
        difference = difference - difference.mean(dim=1, keepdim=True)
        return (difference * difference).mean().float() * 0.5
