"""Finds out whether the callbacks of a command go together, before any network is trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from kdtrain.data.dataset import Dataset
from kdtrain.engine.callback import CallbackList
from kdtrain.engine.objective import Objective
from kdtrain.engine.recorder import Recorder
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.modes import LABEL_SMOOTHING, MODES, Setup
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.card import model_card
from kdtrain.store.checkpoint import SavedModel


def rehearse(config: FitConfig, dataset: Dataset, teacher: SavedModel | None) -> None:
    """Has the callbacks of every fit configure its objective once, on networks with their first weights.

    ``configure`` has no effects, so nobody notices. What it raises, such as that a plugin is there
    twice, would otherwise be raised when the networks that are trained before are finished.

    Args:
        config: of the command.
        dataset: what the networks are for.
        teacher: the one that is there already; None where there is none, or one is trained first.

    Raises:
        CallbackError: a callback's ``configure`` raised.
    """
    with_teacher = None if teacher is None else teacher.build()
    for mode, arch, plugins in _fits(config, has_teacher=teacher is not None):
        network = build_model(arch, dataset.image_shape, dataset.num_classes)
        own = dataclasses.replace(config, plugin=(*config.plugin, *plugins))
        card = model_card(mode, arch, dataset)
        setup = Setup(own, card, mode, with_teacher if MODES[mode].has_teacher else None)
        student = Recorder(network, "student", flow.zeros(1, *dataset.image_shape))
        CallbackList(MODES[mode].callbacks(setup)).configure(Objective.task().with_student(student))
        if config.mode == "student_kd" or mode == "teacher":  # the next one's
            with_teacher = network


def _fits(config: FitConfig, *, has_teacher: bool) -> Iterator[tuple[str, str, tuple[str, ...]]]:
    """Yields mode, architecture and further plugins of each kind of fit, in their order."""
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
    if config.with_label_smoothing:
        yield "student", student, (LABEL_SMOOTHING,)
