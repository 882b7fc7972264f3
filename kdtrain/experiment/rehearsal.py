"""The rehearsal of a command: the callbacks of every fit configure its objective before any training."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator

import numpy as np

from kdtrain.callbacks import DistillationCallback
from kdtrain.callbacks.plugins import numeric_arguments
from kdtrain.data.dataset import Dataset
from kdtrain.data.loader import Batch
from kdtrain.engine.callback import CallbackList
from kdtrain.engine.objective import Objective
from kdtrain.engine.recorder import Recorder
from kdtrain.experiment.modes import MODES, callbacks_for, controls_of
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.teachers.find import TrainedTeacher
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.card import model_card

logger = logging.getLogger(__name__)


def rehearse(config: FitConfig, dataset: Dataset, teacher: TrainedTeacher | None) -> None:
    """Calls ``configure`` of every callback of every fit once, on networks with initial weights.

    ``configure`` has no side effects. Its errors, such as a plugin that is given twice, would otherwise
    be raised only after the training of the previous networks. A temperature that no loss reads is said.
    Where images have no labels, the losses of students with a teacher are computed once, because some
    methods need a label for each image.

    Args:
        config: configuration of the command.
        dataset: the images that the networks are for.
        teacher: the teacher that exists already; None if there is none or one is trained first.

    Raises:
        CallbackError: a callback's ``configure`` raised.
        KdtrainError: a loss cannot be computed for images without labels.
    """
    teaching, is_read = None if teacher is None else teacher.build(), True
    for mode, arch, plugins in _fits(config, has_teacher=teacher is not None):
        network = build_model(arch, dataset.image_shape, dataset.num_classes)
        of_fit = dataclasses.replace(config, plugin=(*config.plugin, *plugins))
        callbacks = callbacks_for(
            of_fit, model_card(mode, arch, dataset), mode, teaching if MODES[mode].has_teacher else None
        )
        student = Recorder(network, "student", flow.zeros(1, *dataset.image_shape))
        objective = CallbackList(callbacks).configure(Objective.task().with_student(student))
        if dataset.transfer is not None and MODES[mode].has_teacher:
            _compute_losses(objective, dataset)
        if not plugins:
            is_read &= all(c.temperature_is_read for c in callbacks if isinstance(c, DistillationCallback))
        if mode == "teacher":
            teaching = network
    if not is_read:
        logger.info(_unread_sentence(config))


def configured_distillation(
    config: FitConfig, dataset: Dataset, teacher: flow.nn.Module, device: str
) -> DistillationCallback:
    """Returns the distillation of a student's fit; its teacher records the layers that plugins compare.

    Args:
        config: configuration of the command.
        dataset: the images that the networks are for.
        teacher: the teacher.
        device: the device of teacher and student.
    """
    arch = config.student_arch
    network = build_model(arch, dataset.image_shape, dataset.num_classes).to(device)
    callbacks = callbacks_for(config, model_card("student_kd", arch, dataset), "student_kd", teacher)
    student = Recorder(network, "student", flow.zeros(1, *dataset.image_shape).to(device))
    CallbackList(callbacks).configure(Objective.task().with_student(student))
    [distillation] = (callback for callback in callbacks if isinstance(callback, DistillationCallback))
    return distillation


def _unread_sentence(config: FitConfig) -> str:
    """Returns what is said of a temperature that no loss reads, because plugins have replaced those."""
    own = {spec.partition(",")[0]: numeric_arguments(spec).get("temperature") for spec in config.plugin}
    said = [f" {name} has temperature={value:g}." for name, value in own.items() if value is not None]
    return f"--temperature {config.temperature:g} has no effect: no loss reads it.{''.join(said)}"


def _compute_losses(objective: Objective, dataset: Dataset) -> None:
    """Computes every term on a batch in which some images have no label.

    Raises:
        KdtrainError: a term needs a label for each image.
    """
    pixels = np.random.default_rng(0).normal(size=(4, *dataset.image_shape)).astype(np.float32)
    numbers = np.arange(4)
    batch = Batch(
        flow.tensor(pixels),
        flow.tensor(np.zeros_like(numbers)),
        flow.tensor(numbers),
        labelled=flow.tensor(numbers < 2),
        label_count=2.0,
    )
    objective(batch, objective.student(batch.inputs))


def _fits(config: FitConfig, *, has_teacher: bool) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yields mode, architecture and additional plugins of each kind of fit, in order of training."""
    student = config.student_arch
    if config.mode == "teacher" or (config.mode != "student" and not has_teacher):
        yield "teacher", config.architecture_for("teacher"), ()
    if config.mode in ("student_kd", "compare"):
        yield "student_kd", student, ()
    if config.mode in ("student", "compare"):
        yield "student", student, ()
    for model in controls_of(config):
        yield MODES[model].fit, student, MODES[model].plugins
