"""Puts a teacher's soft labels into the loss."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from kdtrain.callbacks.teacher_logits import logits_over, weights_fingerprint
from kdtrain.data.loader import Batch, Loader
from kdtrain.engine.callback import Callback
from kdtrain.engine.events import FitEnd, Status
from kdtrain.engine.losses import soft_target_loss
from kdtrain.engine.objective import Objective
from kdtrain.engine.recorder import Output, Teacher
from kdtrain.engine.run import Run
from kdtrain.errors import CheckpointError, KdtrainError, UsageError
from kdtrain.runtime import flow

logger = logging.getLogger(__name__)


class SoftTargets:
    """The term that compares a student's softened probabilities with its teacher's.

    Args:
        teacher: a trained network; put into evaluation mode, and gets no gradient.
        temperature: T, above 0.
    """

    def __init__(self, teacher: flow.nn.Module, temperature: float) -> None:
        self.teacher = Teacher(teacher)
        self.temperature = temperature

    def teacher_logits(self, batch: Batch) -> flow.Tensor:
        """Returns the teacher's logits for a batch, (B, classes)."""
        return self.teacher.logits(batch)

    def __call__(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the loss of ``soft_target_loss`` for a batch."""
        return soft_target_loss(output.logits, self.teacher_logits(batch), self.temperature)


class DistillationCallback(Callback):
    """Trains a student on (1 - alpha) * cross-entropy + alpha * T^2 * KL(teacher_T || student_T).

    After Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.

    Args:
        teacher: a trained network; it is used in evaluation mode and never changed.
        temperature: T, above 0: how soft both distributions are made.
        alpha: weight of the soft term, 0 to 1.
        cache_directory: where the teacher's logits are kept between fits; None forgets them.
    """

    def __init__(
        self,
        teacher: flow.nn.Module,
        temperature: float = 4.0,
        alpha: float = 0.9,
        *,
        cache_directory: Path | None = None,
    ) -> None:
        if not 0.0 < temperature < float("inf"):
            raise UsageError(f"temperature {temperature}: it must be above 0.")
        if not 0.0 <= alpha <= 1.0:
            raise UsageError(f"alpha {alpha}: it must be from 0 to 1.")
        self.soft_targets = SoftTargets(teacher, temperature)
        self.teacher = self.soft_targets.teacher
        self.alpha = alpha
        self.cache_directory = cache_directory
        self._fingerprint = ""

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective with the soft targets blended in, as the term ``kd``, and the teacher."""
        return objective.with_teacher(self.teacher).blend("kd", self.soft_targets, weight=self.alpha)

    def on_fit_start(self, run: Run) -> None:
        """Asks the teacher about every training image, once, unless each epoch changes the images.

        Raises:
            CheckpointError: the teacher knows another number of classes.
        """
        teacher = self.teacher.network
        self._check_classes(run.train)
        self._fingerprint = weights_fingerprint(teacher)
        if run.train.augments:
            logger.info("The images are augmented, so the teacher is asked at every step: that is slow.")
            return
        if self.teacher.layers:
            logger.info("Layers of the teacher are compared, so it is asked at every step: that is slow.")
        logits = logits_over(teacher, run.train, self.cache_directory)
        self.teacher.use_table(logits, run.train.device)

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Makes sure that the teacher is the one that it was.

        Raises:
            KdtrainError: something has changed the teacher's weights during the fit.
        """
        finished = event.status in (Status.COMPLETED, Status.STOPPED)
        if finished and weights_fingerprint(self.teacher.network) != self._fingerprint:
            raise KdtrainError("the teacher's weights changed during the fit: the result cannot be trusted.")

    def state_dict(self) -> dict[str, Any]:
        """Returns what the teacher can be known by."""
        return {"teacher": self._fingerprint}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Makes sure that the teacher is the one that the run was begun with.

        Raises:
            CheckpointError: its weights are others.
        """
        if state["teacher"] != weights_fingerprint(self.teacher.network):
            raise CheckpointError(
                "the teacher is not the one that the run was begun with: its weights are others. "
                "Put that one back, or start a new run."
            )

    def _check_classes(self, train: Loader) -> None:
        first = next(iter(train.sequential(train.ranks.size).epoch(1)))
        classes = int(self.teacher.logits(first).shape[1])
        if classes != train.num_classes:
            raise CheckpointError(
                f"the teacher knows {classes} classes, the data have {train.num_classes}: "
                "choose a teacher that was trained on these data with --teacher-checkpoint."
            )
