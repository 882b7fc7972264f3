"""Distillation: the loss against a teacher's soft targets, and the callback that adds it."""

from __future__ import annotations

import logging
import re
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdtrain.callbacks.teacher_outputs.cache import (
    PROOFS,
    OutputCache,
    OutputTables,
    logit_table,
    outputs_agree,
    weights_fingerprint,
)
from kdtrain.data.loader import Batch, Loader
from kdtrain.engine.callback import Callback, NeedsTeacher
from kdtrain.engine.events import FitEnd, Status
from kdtrain.engine.losses import soft_target_loss
from kdtrain.engine.objective import Objective, Weight
from kdtrain.engine.predict import batch_logits
from kdtrain.engine.recorder import Output, Teacher
from kdtrain.engine.run import Run
from kdtrain.engine.teacher_network import GivenLogits, images_for, members_of
from kdtrain.errors import CheckpointError, KdtrainError, UsageError
from kdtrain.runtime import flow
from kdtrain.runtime.value_checks import DEFAULT_TEMPERATURE, positive

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SoftTargets:
    """The term that compares a student's softened probabilities with its teacher's.

    Attributes:
        teacher: the teacher.
        temperature: T, above 0.
    """

    teacher: Teacher
    temperature: float

    def __call__(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the loss of ``soft_target_loss`` for a batch: a float32 scalar, in nats times T^2."""
        logits = self.teacher.logits(batch, self.temperature)
        return soft_target_loss(output.logits, logits, self.temperature)


class DistillationCallback(Callback):
    """Trains a student on (1 - alpha) * cross-entropy + alpha * T^2 * KL(teacher_T || student_T).

    After Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015), section 2.

    The teacher runs once over all variants of the training images, before the first step: for its logits, and
    for the layers that callbacks record. It runs at every step if each epoch has new variants, or if the
    layers take too much space.

    Args:
        teacher: a trained network, or an ``Ensemble`` of several; it is used in evaluation mode and never
            changed.
        temperature: T, above 0; a higher one makes both distributions softer.
        alpha: weight of the soft term, 0 to 1.
        cache_directory: the folder that keeps the teacher's logits and layers between fits; None keeps none.

    Attributes:
        teacher: the teacher as terms see it, from ``configure`` on.
    """

    teacher: Teacher

    def __init__(
        self,
        teacher: flow.nn.Module,
        temperature: float = DEFAULT_TEMPERATURE,
        alpha: float = 0.9,
        *,
        cache_directory: Path | str | None = None,
    ) -> None:
        if not 0.0 <= alpha <= 1.0:
            raise UsageError(f"alpha={alpha}: it must be from 0 to 1.")
        self.network = teacher
        self.temperature = positive("temperature", temperature)
        self.alpha = alpha
        self.cache_directory = None if cache_directory is None else Path(cache_directory)
        self._fingerprint = ""
        self._probes: list[float] = []
        self._begun_with: list[float] = []
        self._soft_targets: Callable[[], SoftTargets | None] = lambda: None
        self._was_read = False

    @property
    def temperature_is_read(self) -> bool:
        """Whether a term or a callback has the temperature, while the objective of the fit exists."""
        # A callback that makes a loss of the soft targets keeps them; one that replaces them does not.
        return self._was_read or self._soft_targets() is not None

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective with the teacher, and with the soft targets blended in as the term ``kd``."""
        self.teacher = Teacher(self.network, objective.student.images)
        soft_targets = SoftTargets(self.teacher, self.temperature)
        self._soft_targets, self._was_read = weakref.ref(soft_targets), False
        objective = objective.with_teacher(self.teacher, self._read_temperature)
        return objective.blend("kd", soft_targets, weight=self.alpha)

    def on_fit_start(self, run: Run) -> None:
        """Computes the teacher's outputs for the training images, unless each epoch has new variants.

        Raises:
            CheckpointError: the teacher has another number of classes than the data; or its outputs
                are not those of the begin of the run, which a change of its code does.
        """
        self._fingerprint = weights_fingerprint(self.network)
        begun_with, self._probes = self._begun_with, self._probe(run.train)
        self._begun_with = []
        now, before = (np.array(probes, np.float32) for probes in (self._probes, begun_with))
        if begun_with and not outputs_agree(now, before):
            raise CheckpointError(
                "the teacher is not the one that the run was begun with: its weights are the same, and its "
                "outputs are different. Put the first code of its network back, or start a new run."
            )
        self.teacher.use_images(run.train)
        if run.train.is_endless:
            self._check_classes(run.train)
            logger.info(
                "Each epoch has new variants of the images, so the teacher runs at every step: "
                f"about {self._minutes(run):.1f} minutes in all. With fixed ones (--views) it runs once."
            )
            return
        self.compute_outputs(run.train, run.epochs)
        self._check_classes(run.train)

    def compute_outputs(self, train: Loader, epochs: int) -> None:
        """Computes the teacher's outputs, or reads those that the cache has; the teacher then uses them.

        Args:
            train: the training images, as they are or in fixed variants.
            epochs: the epochs of the fit.
        """
        tables = self._kept_layers(train, epochs)
        if tables is None:
            members = members_of(self.network)
            self.teacher.use_table(*(logit_table(m, train, self.cache_directory, epochs) for m in members))
        else:
            self.teacher.use_table(tables.logits)
            self.teacher.use_feature_tables(tables.features)

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Checks that the teacher's weights have not changed.

        Raises:
            KdtrainError: they have changed during the fit.
        """
        finished = event.status in (Status.COMPLETED, Status.STOPPED)
        if finished and weights_fingerprint(self.network) != self._fingerprint:
            raise KdtrainError("the teacher's weights changed during the fit: the result cannot be trusted.")

    def state_dict(self) -> dict[str, Any]:
        """Returns the fingerprint of the teacher's weights, and some of its outputs."""
        return {"teacher": self._fingerprint, "probes": self._probes}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Checks that the teacher is the one that the run was begun with.

        Raises:
            CheckpointError: its weights are different.
        """
        if state["teacher"] != weights_fingerprint(self.network):
            raise CheckpointError(
                "the teacher is not the one that the run was begun with: its weights are different. "
                "Put the first one back, or start a new run."
            )
        self._begun_with = list(state.get("probes", []))

    def _probe(self, train: Loader) -> list[float]:
        """Returns a number of each network about some images as they are, which show a change of its code."""
        images = np.unique(np.linspace(0, train.num_images - 1, PROOFS).astype(np.int64))
        probes: list[float] = []
        for member in members_of(self.network):
            if not isinstance(member, GivenLogits):
                logits = batch_logits(member, images_for(member, train).batch(images))
                # A sum with unequal weights: it changes with each logit, and where classes change places.
                probes += (logits @ np.cos(np.arange(logits.shape[1]))).tolist()
        return probes

    def _read_temperature(self) -> float:
        self._was_read = True
        return self.temperature

    def _kept_layers(self, train: Loader, epochs: int) -> OutputTables | None:
        """Returns the teacher's outputs if its layers are kept; logs why they are not, or what is new."""
        if not self.teacher.layers:
            return None
        cache = OutputCache(self.teacher, train, self.cache_directory)
        reason = cache.reason_to_run(epochs)
        if reason is not None:
            logger.info(f"The teacher runs at every step, which is slow: {reason}.")
            return None
        if cache.cost_of_layers(epochs)[0]:
            logger.info(f"The teacher's layers are computed once and kept: {cache.describe_layers(epochs)}.")
        return cache.tables(epochs)

    def _check_classes(self, train: Loader) -> None:
        first = train.batch(np.arange(1), None if train.views is None else np.zeros(1, np.int64))
        classes = int(self.teacher.logits(first).shape[1])
        if classes != train.num_classes:
            raise CheckpointError(
                f"the teacher has {classes} classes, the data have {train.num_classes}: "
                "choose a teacher that was trained on these data with --teacher-checkpoint."
            )

    def _minutes(self, run: Run) -> float:
        """Returns the minutes that the teacher takes in all epochs to come, from its time for one batch."""
        first, began = next(iter(run.train.epoch(1))), time.perf_counter()
        self.teacher.logits(first)
        return (time.perf_counter() - began) * len(run.train) * (run.epochs - run.epoch) / 60


class LogitMethod(NeedsTeacher):
    """Puts a loss on logits in the place of the soft targets, under their weight.

    A method overrides ``loss``. The term is named after the class: ``logit_std`` for ``LogitStd``.

    Attributes:
        weight: multiplies the loss; a number or a schedule, see ``Objective.add``.
        teacher: the teacher, from ``configure`` on.
    """

    weight: Weight = 1.0
    teacher: Teacher

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective with the method's term instead of ``kd``."""
        self.teacher = objective.teacher
        name = re.sub(r"\B([A-Z])", r"_\1", type(self).__name__).lower()
        return objective.replace("kd", self.loss, rename=name, factor=self.weight)

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the loss of a batch: a float32 scalar, the mean over the images.

        Args:
            batch: images and labels, see ``Batch``.
            output: the student's output, with its logits, (B, classes) float32.
        """
        raise NotImplementedError
