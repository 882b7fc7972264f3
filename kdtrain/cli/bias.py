"""The command ``kdtrain bias``: raised biases for classes that a student was trained without."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from pathlib import Path

import numpy as np

from kdtrain.callbacks.teacher_logits import AnswerCache
from kdtrain.cli.output import Output
from kdtrain.data.datasets import load_dataset
from kdtrain.engine.predict import predict_logits
from kdtrain.errors import UsageError
from kdtrain.experiment.class_bias import raise_biases, shift_by_labels, shift_by_teacher
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.config_file import load_config
from kdtrain.experiment.loaders import RunData, prepare
from kdtrain.experiment.modes import logit_cache
from kdtrain.experiment.teacher import find_teacher
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.runtime import flow
from kdtrain.runtime.files import make_folder
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.store.checkpoint import load_model, save_model


def run(options: argparse.Namespace) -> int:
    """Raises the biases of a student's omitted classes, and prints the accuracy before and after."""
    directory: Path = options.run
    config = _config(directory, options.by)
    device = resolve_device(options.device)
    dataset = load_dataset(
        config.dataset, config.data_dir, image_size=config.image_size, skip_corrupt=config.skip_corrupt
    )
    data = prepare(dataset, config, "student", config.seed, device)
    saved = load_model(directory / "checkpoints/best.safetensors", arch=config.student_arch)
    classes = [dataset.classes.index(name) for name in config.omit_class]

    student = saved.build(device)
    logits = predict_logits(student, data.validation)
    if options.by == "labels":
        shift = shift_by_labels(logits, data.validation.targets, classes)
    else:
        shift = _shift_by_teacher(options.by, config, data, student, classes)
    raised = logits + np.where(np.isin(np.arange(dataset.num_classes), classes), np.float32(shift), 0)
    before = Evaluation.from_logits(logits, data.validation.targets)
    after = Evaluation.from_logits(raised, data.validation.targets)

    output = options.output or directory / f"checkpoints/bias_{options.by}.safetensors"
    metrics = {
        "eval/accuracy": after.accuracy,
        "eval/cross_entropy": after.cross_entropy,
        "bias_shift": shift,
    }
    make_folder(output.parent)
    save_model(output, raise_biases(saved, classes, shift), dataclasses.replace(saved.card, metrics=metrics))
    _report(options, config, shift, before, after, output)
    return 0


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
    teacher_logits = AnswerCache(teacher, data.train, logit_cache(config)).plain()
    student_logits = predict_logits(student, data.train, description="transfer set")
    return shift_by_teacher(student_logits, teacher_logits, classes)


def _report(
    options: argparse.Namespace,
    config: FitConfig,
    shift: float,
    before: Evaluation,
    after: Evaluation,
    output: Path,
) -> None:
    if options.json:
        answer = {
            "run": str(options.run),
            "classes": list(config.omit_class),
            "by": options.by,
            "shift": shift,
            "validation_errors": {"before": before.errors, "after": after.errors, "images": after.images},
            "checkpoint": str(output),
        }
        print(json.dumps(answer, indent=2))
        return
    text = Output().text
    text(f"bias of {', '.join(config.omit_class)} raised by {shift:.2f}")
    text(f"validation accuracy {before.accuracy:.2%} before, {after.accuracy:.2%} after")
    text(f"weights in {output}")
