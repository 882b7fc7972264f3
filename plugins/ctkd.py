"""Curriculum temperature: soft targets whose temperature is trained against the student."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

from kdtrain import (
    Batch,
    EpochEnd,
    FitEnd,
    NeedsTeacher,
    Objective,
    Output,
    Run,
    Teacher,
    at_least,
    flow,
    positive,
)

F = flow.nn.functional

logger = logging.getLogger("kdtrain.ctkd")


class Ctkd(NeedsTeacher):
    """Trains the temperature of the soft targets to make their loss larger, more so from epoch to epoch.

    Li et al., "Curriculum Temperature for Knowledge Distillation" (AAAI 2023), sections "Adversarial
    Distillation" and "Curriculum Temperature", with the global temperature of "Learnable Temperature Module":
    T = lowest + span sigmoid(theta), where theta is 1 at the beginning, so that T is 15.6 with the defaults.
    The optimizer of the student trains theta along a reversed gradient, multiplied by lambda, which goes from
    0 to 1 along half a cosine. Formulas and defaults are those of the authors' code (zhengli97/CTKD,
    models/temp_global.py, train_student.py), which has 0.1 for the labels' loss beside 0.9, as kdtrain's
    ``--alpha 0.9``. The gradient is reversed without an operation of its own. The loss is computed in
    float64.

    Lambda has its effect with SGD. Adam divides gradients by their size, so with it theta moves at the
    learning rate from the start. The loss replaces the soft targets, under their weight.

    Card:
        Copies: the softened probabilities, at a temperature that training changes.
        Helps: where nobody wants to choose T: ``span`` is all there is to set.
        Hurts: with Adam, which kdtrain has by default: the temperature then moves at the learning rate,
            whatever lambda is.
        Cost: that of soft targets.
        Measured: against the plain student. mnist, student_mlp, 5000 images: +0.30 points, 1.5 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +1.04 points, 1.6 x the epoch; mnist, student_mlp, 5000
            labels: +1.03 points, 2.1 x the epoch. See docs/methods.md.

    Args:
        lowest: the lower bound of T, above 0.
        span: the upper bound of T above the lower one, above 0.
        epochs: epochs until lambda is 1, at least 1.
    """

    def __init__(self, lowest: float = 1.0, span: float = 20.0, epochs: int = 10) -> None:
        self.lowest = positive("lowest", lowest)
        self.span = positive("span", span)
        self.epochs = at_least("epochs", epochs, 1)
        self.epochs_done = 0

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective with the term ``ctkd`` instead of ``kd``."""
        self.term = TrainedTemperature(objective.teacher, self.lowest, self.span, self.reversal)
        return objective.replace("kd", self.term, rename="ctkd")

    def on_fit_start(self, run: Run) -> None:
        """Starts at the first epoch, or where a resumed fit was."""
        self.epochs_done = run.epoch

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Counts the epoch."""
        self.epochs_done = event.epoch

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Logs the temperature that the fit ended with."""
        logger.info(f"ctkd: the temperature is {self.term.temperature(0.0).item():.2f} at the end.")

    def reversal(self) -> float:
        """Returns lambda of the current epoch: (1 - cos(pi epoch / epochs)) / 2, and 1 afterwards."""
        epoch = min(self.epochs_done + 1, self.epochs)
        return (1.0 - math.cos(math.pi * epoch / self.epochs)) / 2.0


class TrainedTemperature(flow.nn.Module):
    """The loss on soft targets, with a temperature that is trained.

    Args:
        teacher: the teacher.
        lowest: the lower bound of T.
        span: the upper bound of T above the lower one.
        reversal: returns the factor of the reversed gradient, 0 to 1.
    """

    def __init__(self, teacher: Teacher, lowest: float, span: float, reversal: Callable[[], float]) -> None:
        super().__init__()
        self.teacher = teacher
        self.lowest = lowest
        self.span = span
        self.reversal = reversal
        self.theta = flow.nn.Parameter(flow.ones(1))

    def temperature(self, reversal: float) -> flow.Tensor:
        """Returns T, (1,) float64; the gradient to theta is multiplied by ``-reversal``."""
        theta = self.theta.double()
        theta = theta.detach() * (1.0 + reversal) - theta * reversal  # equal to theta
        return flow.sigmoid(theta) * self.span + self.lowest

    def forward(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns T^2 KL(teacher_T || student_T), the mean over the images.

        Args:
            batch: images and labels, see ``Batch``.
            output: its ``logits`` are (B, C) float32; the gradient flows here, and reversed to theta.

        Returns:
            A float32 scalar, in nats times T^2.
        """
        temperature = self.temperature(self.reversal())
        log_student = F.log_softmax(output.logits.double() / temperature, dim=1)
        log_teacher = F.log_softmax(self.teacher.logits(batch).double() / temperature, dim=1)
        divergence = (log_teacher.exp() * (log_teacher - log_student)).sum(dim=1).mean()
        return (divergence * temperature * temperature).sum().float()  # of one number, to a scalar
