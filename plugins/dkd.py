"""Decoupled knowledge distillation: the target class and the other classes, each with its own weight."""

from __future__ import annotations

from kdtrain import Batch, LogitMethod, Output, UsageError, at_least, flow, positive

F = flow.nn.functional


class Dkd(LogitMethod):
    """Weighs the teacher's probability of the label apart from those of the other classes.

    Zhao et al., "Decoupled Knowledge Distillation" (2022), sections 3.1 and 3.3; defaults and warm-up
    are those of the authors' code (megvii-research/mdistiller). The loss replaces the soft targets, under
    their weight; ``--alpha 0.5`` gives the paper's sum with the labels' loss.

    Card:
        Copies: the softened probabilities; those of the wrong classes count fully, however sure the teacher
            is.
        Helps: where the teacher is nearly always sure, and soft targets say little beyond the label.
        Hurts: where the teacher errs often. Every image needs its label: ``--labels`` and ``--transfer-data``
            are refused.
        Cost: three softmaxes for one. Fewer epochs than ``warmup`` never reach its full weight.
        Measured: against the plain student. mnist, student_mlp, 5000 images: +0.59 points, 1.5 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +0.50 points, 1.5 x the epoch. See docs/methods.md.

    Args:
        alpha: weight of TCKD, the divergence of (label, all other classes). 0 or more.
        beta: weight of NCKD, the divergence among the other classes. 0 or more.
        temperature: T, above 0.
        warmup: epochs in which the weight rises to its full value, in equal steps.
    """

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, warmup: int = 20
    ) -> None:
        if not (min(alpha, beta) >= 0.0 and 0.0 < alpha + beta < float("inf")):
            raise UsageError(f"alpha={alpha}, beta={beta}: neither may be below 0, nor both be 0.")
        self.alpha = alpha
        self.beta = beta
        self.temperature = positive("temperature", temperature)
        self.warmup = at_least("warmup", warmup, 0)
        self.weight = self.ramp

    def ramp(self, epochs_done: float) -> float:
        """Returns the fraction of the weight after ``epochs_done`` epochs: 1/warmup in the first epoch."""
        return min((int(epochs_done) + 1) / self.warmup, 1.0) if self.warmup else 1.0

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns T^2 (alpha * TCKD + beta * NCKD): a float32 scalar, in nats times T^2."""
        teacher_logits = self.teacher.logits(batch)
        tckd, nckd = decoupled(output.logits, teacher_logits, batch.targets, self.temperature)
        return (tckd * self.alpha + nckd * self.beta).float()


def decoupled(
    student: flow.Tensor, teacher: flow.Tensor, targets: flow.Tensor, temperature: float
) -> tuple[flow.Tensor, flow.Tensor]:
    """Returns TCKD and NCKD, each times T^2.

    With p the teacher's probability of the label, T^2 KL(teacher || student) of an image is its
    TCKD + (1 - p) NCKD, each times T^2.

    Args:
        student: logits, (B, C) float32; the gradient flows here.
        teacher: logits, (B, C) float32.
        targets: labels, (B,) int64.
        temperature: T.

    Returns:
        Two float64 scalars: the means over the images, in nats times T^2.
    """
    column = targets.unsqueeze(1)
    one_hot = F.one_hot(targets, student.shape[1]).double()
    with flow.no_grad():
        teacher_label, teacher_rest, teacher_others = _log_probabilities(
            teacher, column, one_hot, temperature
        )
    student_label, student_rest, student_others = _log_probabilities(student, column, one_hot, temperature)
    of_label = teacher_label.exp() * (teacher_label - student_label)
    tckd = of_label + teacher_rest.exp() * (teacher_rest - student_rest)
    # The label's own entry is about -1e9 in both, so its probability is exactly 0 and leaves it out.
    nckd = teacher_others.exp() * (teacher_others - student_others)
    scale = temperature**2 / len(targets)
    return tckd.sum() * scale, nckd.sum() * scale


def _log_probabilities(
    logits: flow.Tensor, column: flow.Tensor, one_hot: flow.Tensor, temperature: float
) -> tuple[flow.Tensor, flow.Tensor, flow.Tensor]:
    """Returns log probabilities of each image, in float64.

    Args:
        logits: (B, C) float32.
        column: labels, (B, 1) int64.
        one_hot: the labels, (B, C) float64.
        temperature: T.

    Returns:
        Of the label, (B, 1); of any other class, (B, 1); of each class among the other classes, (B, C).
    """
    scaled = logits.double() / temperature
    log_p = F.log_softmax(scaled, dim=1)
    among_others = F.log_softmax(scaled - one_hot * 1e9, dim=1)
    # log p(class) = log(1 - p(label)) + log p(class among the others), for any class but the label.
    other_class = (column == 0).to(flow.int64)
    rest = log_p.gather(1, other_class) - among_others.gather(1, other_class)
    return log_p.gather(1, column), rest, among_others
