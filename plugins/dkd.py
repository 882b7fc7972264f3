"""Decoupled knowledge distillation: the target class and the others, each under a weight of its own."""

from __future__ import annotations

from kdtrain import Batch, NeedsTeacher, Objective, Output, UsageError, flow

F = flow.nn.functional


class Dkd(NeedsTeacher):
    """Weighs what the teacher says about the label apart from what it says about the other classes.

    Zhao et al., "Decoupled Knowledge Distillation" (2022), sections 3.1 and 3.3; defaults and warm-up
    are those of the authors' code (megvii-research/mdistiller). The loss takes the place of
    the soft targets, under their weight: the paper's sum of both losses is ``--alpha 0.5``.

    Args:
        alpha: weight of TCKD, the divergence of (label, all others). 0 or more.
        beta: weight of NCKD, the divergence among the other classes. 0 or more.
        temperature: T, above 0.
        warmup: the epochs over which the loss gets its full weight, in equal steps.
    """

    def __init__(
        self, alpha: float = 1.0, beta: float = 8.0, temperature: float = 4.0, warmup: int = 20
    ) -> None:
        if not (min(alpha, beta) >= 0.0 and 0.0 < alpha + beta < float("inf")):
            raise UsageError(f"alpha={alpha}, beta={beta}: neither may be below 0, nor both be 0.")
        if not 0.0 < temperature < float("inf"):
            raise UsageError(f"temperature={temperature}: it must be above 0.")
        if warmup < 0:
            raise UsageError(f"warmup={warmup}: it must not be negative.")
        self.alpha = alpha
        self.beta = beta
        self.temperature = temperature
        self.warmup = warmup

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective with the term ``dkd`` instead of ``kd``."""
        self.teacher = objective.teacher
        return objective.replace("kd", self.loss, rename="dkd", factor=self.ramp)

    def ramp(self, epochs_done: float) -> float:
        """Returns the part of the weight that an epoch trains with: 1/warmup in the first."""
        return min((int(epochs_done) + 1) / self.warmup, 1.0) if self.warmup else 1.0

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns alpha * TCKD + beta * NCKD, times T^2."""
        target, others = decoupled(output.logits, self.teacher.logits(batch), batch.targets, self.temperature)
        return (target * self.alpha + others * self.beta).float()


def decoupled(
    student: flow.Tensor, teacher: flow.Tensor, targets: flow.Tensor, temperature: float
) -> tuple[flow.Tensor, flow.Tensor]:
    """Returns TCKD and NCKD, each times T^2, the means over the images, in float64.

    With p the teacher's probability of the label, T^2 KL(teacher || student) of an image is its
    TCKD + (1 - p) NCKD.

    Args:
        student: logits, (B, classes); the gradient flows here.
        teacher: logits, (B, classes).
        targets: labels, (B,).
        temperature: T.
    """
    column = targets.unsqueeze(1)
    chosen = F.one_hot(targets, student.shape[1]).double()
    with flow.no_grad():
        their_label, their_rest, theirs = _parts(teacher, column, chosen, temperature)
    our_label, our_rest, ours = _parts(student, column, chosen, temperature)
    label = their_label.exp() * (their_label - our_label) + their_rest.exp() * (their_rest - our_rest)
    # The label's own entry is about -1e9 on both sides: its probability of exactly 0 leaves it out.
    others = theirs.exp() * (theirs - ours)
    scale = temperature**2 / len(targets)
    return label.sum() * scale, others.sum() * scale


def _parts(
    logits: flow.Tensor, column: flow.Tensor, chosen: flow.Tensor, temperature: float
) -> tuple[flow.Tensor, flow.Tensor, flow.Tensor]:
    """Returns log probabilities: of the label (B, 1), of not the label (B, 1), among the others (B, C)."""
    scaled = logits.double() / temperature
    log_p = F.log_softmax(scaled, dim=1)
    among = F.log_softmax(scaled - chosen * 1e9, dim=1)
    # log p = log(1 - p_label) + log(p among the others), for any of these.
    other = (column == 0).to(flow.int64)
    rest = log_p.gather(1, other) - among.gather(1, other)
    return log_p.gather(1, column), rest, among
