"""The raised biases of a run's student that was trained without some classes."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdtrain.callbacks.teacher_outputs.cache import OutputCache
from kdtrain.data.datasets import load_dataset
from kdtrain.engine.predict import predict_logits
from kdtrain.errors import UsageError, unknown_name_message
from kdtrain.experiment.class_bias import raise_biases, shift_by_labels, shift_by_teacher
from kdtrain.experiment.loaders import RunData, prepare
from kdtrain.experiment.modes import logit_cache
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import load_config
from kdtrain.experiment.teachers.find import find_teacher
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.metrics.names import ACCURACY, CROSS_ENTROPY
from kdtrain.runtime import flow
from kdtrain.runtime.files import make_folder
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.store.checkpoint import load_model, save_model

WAYS = ("transfer", "validation", "labels")
"""The values of ``--by``."""


@dataclass(frozen=True, eq=False, repr=False)
class RaisedBiases:
    """A student with raised biases.

    Attributes:
        path: its checkpoint.
        classes: the classes.
        shift: what their biases were raised by.
        before: figures of the student on the validation images.
        after: figures with the raised biases.
    """

    path: Path
    classes: tuple[str, ...]
    shift: float
    before: Evaluation
    after: Evaluation

    def __repr__(self) -> str:
        figures = f"{self.before.accuracy:.2%} before, {self.after.accuracy:.2%} after"
        return f"<RaisedBiases of {', '.join(self.classes)} by {self.shift:.2f}: {figures} ({self.path})>"


def bias(
    run: Path | str, *, by: str = "validation", output: Path | str | None = None, device: str = "auto"
) -> RaisedBiases:
    """Raises the biases of a student's omitted classes, as ``kdtrain bias`` does.

    Args:
        run: the run directory of a student that was trained with ``omit_class``.
        by: what the biases are fitted to: the teacher's mean probability of these classes on the student's
            training images (transfer) or on the validation images (validation), or the labels of the
            validation images (labels).
        output: the checkpoint to write; by default RUN/checkpoints/bias_BY.safetensors.
        device: auto, cpu or cuda.

    Raises:
        KdtrainError: the run is not one of such a student, or its files or data cannot be read.
    """
    if by not in WAYS:
        raise UsageError(f"--by: {unknown_name_message('way', str(by), WAYS)}")
    directory = Path(run)
    config = _config(directory, by)
    device = resolve_device(device)
    dataset = load_dataset(
        config.dataset, config.data_dir, image_size=config.image_size, skip_corrupt=config.skip_corrupt
    )
    data = prepare(dataset, config, "student", config.seed, device)
    saved = load_model(directory / "checkpoints/best.safetensors", arch=config.student_arch)
    classes = [dataset.classes.index(name) for name in config.omit_class]

    student = saved.build(device)
    logits = predict_logits(student, data.validation)
    if by == "labels":
        shift = shift_by_labels(logits, data.validation.targets, classes)
    else:
        shift = _shift_by_teacher(by, config, data, student, classes)
    raised = logits + np.where(np.isin(np.arange(dataset.num_classes), classes), np.float32(shift), 0)
    before = Evaluation.from_logits(logits, data.validation.targets)
    after = Evaluation.from_logits(raised, data.validation.targets)

    path = directory / f"checkpoints/bias_{by}.safetensors" if output is None else Path(output)
    metrics = {
        ACCURACY: after.accuracy,
        CROSS_ENTROPY: after.cross_entropy,
        "bias_shift": shift,
    }
    make_folder(path.parent)
    save_model(path, raise_biases(saved, classes, shift), dataclasses.replace(saved.card, metrics=metrics))
    return RaisedBiases(path, config.omit_class, shift, before, after)


def _config(directory: Path, by: str) -> FitConfig:
    """Returns the configuration of a run, which must be of a student that was trained with --omit-class."""
    file = directory / "config.toml"
    if not os.path.isfile(file):
        raise UsageError(f"{directory} is no run's directory: it has no config.toml. Name one that fit made.")
    config = load_config({}, file)
    if config.mode not in ("student", "student_kd") or not config.omit_class:
        raise UsageError(f"the run in {directory} is not one of a student trained with --omit-class.")
    if config.mode == "student" and by != "labels":
        raise UsageError(f"--by {by} needs a teacher, and the run in {directory} has none: use --by labels.")
    return config


def _shift_by_teacher(
    by: str, config: FitConfig, data: RunData, student: flow.nn.Module, classes: list[int]
) -> float:
    """Returns the shift of the biases, in nats, that ``shift_by_teacher`` finds on the chosen images."""
    saved = find_teacher(config, data.dataset)
    assert saved is not None  # the configuration of a student_kd names it
    teacher = saved.build(data.train.device)
    if by == "validation":
        teacher_logits = predict_logits(teacher, data.validation)
        return shift_by_teacher(predict_logits(student, data.validation), teacher_logits, classes)
    teacher_logits = OutputCache(teacher, data.train, logit_cache(config)).plain()
    student_logits = predict_logits(student, data.train, description="transfer set")
    return shift_by_teacher(student_logits, teacher_logits, classes)
