"""Normalised logits: soft targets with a temperature for each image and network."""

from __future__ import annotations

from kdtrain import Batch, LogitMethod, Output, flow, positive

F = flow.nn.functional

_EPSILON = 1e-7


class NormKd(LogitMethod):
    """Softens each image's logits by a temperature in proportion to their standard deviation.

    Chi et al., "NormKD: Normalized Logits for Knowledge Distillation" (2023, arXiv:2308.00520). Student and
    teacher each have a temperature of their own for an image, and the image's loss is multiplied by the
    square of the teacher's. That factor is the difference from ``logit_std``. The default is the authors' for
    CIFAR-100 (gizi1/NormKD, mdistiller/distillers/NormKD.py), who have 0.1 for the labels' loss beside 0.9,
    as kdtrain's ``--alpha 0.9``; for ImageNet they have temperature=1 and 0.5 each. Unlike there, 1e-7 is
    added to the deviation, so that equal logits have a loss, and the loss is computed in float64. It replaces
    the soft targets, under their weight.

    Card:
        Copies: the softened probabilities, each image at a temperature of its own.
        Helps: where images differ in how large their logits are, and no single T suits them all.
        Hurts: where the teacher's logits differ in size between images for a reason: that difference is taken
            away, and the calibration error grows.
        Cost: that of soft targets.
        Measured: against the plain student. mnist, student_mlp, 5000 images: +0.36 points, 1.5 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +0.26 points, 1.5 x the epoch; mnist, student_mlp, 5000
            labels: +1.25 points, 2.2 x the epoch. See docs/methods.md.

    Args:
        temperature: T in units of the standard deviation of an image's logits, above 0.
    """

    def __init__(self, temperature: float = 2.0) -> None:
        self.temperature = positive("temperature", temperature)

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the loss of ``norm_kd_loss`` for a batch: a float32 scalar, in nats times T^2."""
        return norm_kd_loss(output.logits, self.teacher.logits(batch), self.temperature)


def norm_kd_loss(student: flow.Tensor, teacher: flow.Tensor, temperature: float) -> flow.Tensor:
    """Returns T_t^2 KL(softmax(teacher / T_t) || softmax(student / T_s)), the mean over the images.

    T_t and T_s are ``temperature`` times the deviations of the teacher's and the student's logits of the
    image. The gradient also flows through T_s, as in the authors' code.

    Args:
        student: logits, (B, C) float32; the gradient flows here.
        teacher: logits, (B, C) float32; no gradient flows here.
        temperature: the factor.

    Returns:
        A float32 scalar.
    """
    log_student, _ = _softened(student, temperature)
    log_teacher, teacher_temperature = _softened(teacher.detach(), temperature)
    divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1, keepdim=True)
    return (divergence * teacher_temperature * teacher_temperature).mean().float()


def _softened(logits: flow.Tensor, temperature: float) -> tuple[flow.Tensor, flow.Tensor]:
    """Returns log probabilities at the images' own temperatures, and these.

    The deviation is that of a sample, divided by C - 1, as in the authors' code.

    Args:
        logits: (B, C) float32.
        temperature: T in units of the deviation.

    Returns:
        (B, C) and (B, 1) float64.
    """
    centred = logits.double()
    centred = centred - centred.mean(dim=1, keepdim=True)
    variance = (centred * centred).sum(dim=1, keepdim=True) / (logits.shape[1] - 1)
    # Clamped, because the root has no finite slope at 0.
    own_temperature = (variance.clamp(min=_EPSILON**4).sqrt() + _EPSILON) * temperature
    return F.log_softmax(centred / own_temperature, dim=1), own_temperature
