"""Hard-label distillation: the teacher's class as a second label, the control for soft targets."""

from __future__ import annotations

from kdtrain import Batch, LogitMethod, Output, flow


class HardLabels(LogitMethod):
    """Trains on the class that the teacher finds most probable, beside the label.

    Touvron et al., "Training data-efficient image transformers & distillation through attention" (DeiT,
    2021), section 4, "Hard-label distillation": (1 - alpha) CE(label) + alpha CE(teacher's class). The loss
    replaces the soft targets, under their weight, which is ``--alpha``; the paper has ``--alpha 0.5``. There
    is no temperature.

    Card:
        Copies: the class that the teacher finds most probable.
        Helps: with images without labels, where it comes close to soft targets and has no temperature to
            choose.
        Hurts: where each image has a label: it repeats that, or contradicts it.
        Cost: that of soft targets.
        Measured: against the plain student. mnist, student_mlp, 5000 images: -0.07 points, 1.2 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +0.35 points, 1.2 x the epoch; mnist, student_mlp, 5000
            labels: +0.75 points, 1.9 x the epoch. See docs/methods.md.
    """

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the mean cross-entropy against the teacher's classes: a float32 scalar, in nats per image.

        The first of equally probable classes is taken.
        """
        classes = self.teacher.logits(batch).argmax(dim=1)
        return flow.nn.functional.cross_entropy(output.logits, classes)
