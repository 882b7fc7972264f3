"""The rehearsal of a command: the callbacks of every fit configure its objective before any training."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from kdtrain.data.dataset import Dataset
from kdtrain.engine.callback import CallbackList
from kdtrain.engine.objective import Objective
from kdtrain.engine.recorder import Recorder
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.modes import COMPARED, MODES, callbacks_for, controls_of
from kdtrain.experiment.teacher import TrainedTeacher
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.card import model_card


def rehearse(config: FitConfig, dataset: Dataset, teacher: TrainedTeacher | None) -> None:
    """Calls ``configure`` of every callback of every fit once, on networks with initial weights.

    ``configure`` has no side effects. Its errors, such as a plugin that is given twice, would otherwise
    be raised only after the training of the previous networks.

    Args:
        config: configuration of the command.
        dataset: the images that the networks are for.
        teacher: the teacher that exists already; None if there is none or one is trained first.

    Raises:
        CallbackError: a callback's ``configure`` raised.
    """
    next_teacher = None if teacher is None else teacher.build()
    for mode, arch, plugins in _fits(config, has_teacher=teacher is not None):
        network = build_model(arch, dataset.image_shape, dataset.num_classes)
        of_fit = dataclasses.replace(config, plugin=(*config.plugin, *plugins))
        callbacks = callbacks_for(
            of_fit, model_card(mode, arch, dataset), mode, next_teacher if MODES[mode].has_teacher else None
        )
        student = Recorder(network, "student", flow.zeros(1, *dataset.image_shape))
        CallbackList(callbacks).configure(Objective.task().with_student(student))
        if config.mode == "student_kd" or mode == "teacher":
            next_teacher = network


def _fits(config: FitConfig, *, has_teacher: bool) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yields mode, architecture and additional plugins of each kind of fit, in order of training."""
    student = config.student_arch
    if config.mode == "teacher" or (config.mode != "student" and not has_teacher):
        yield "teacher", config.architecture_for("teacher"), ()
    if config.mode == "student_kd":
        for arch in (*config.assistant_arch, *[student] * min(config.generations, 2)):
            yield "student_kd", arch, ()
    if config.mode == "compare":
        yield "student_kd", student, ()
    if config.mode in ("student", "compare"):
        yield "student", student, ()
    for model in controls_of(config):
        mode, plugins = COMPARED[model]
        yield mode, student, plugins
