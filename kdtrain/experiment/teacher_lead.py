"""The measurement of the teacher's lead over a plain student, before students start."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Dataset, Split, hold_out
from kdtrain.errors import CheckpointError
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.fit import Fit
from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.loaders import count_training, count_validation, validation_images, validation_loader
from kdtrain.experiment.session import Session
from kdtrain.experiment.teacher import TrainedTeacher, combined, is_of, member_logits
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.models.registry import build_model, count_multiply_adds
from kdtrain.report.teacher_lead import (
    Baseline,
    TeacherLead,
    lead_from_json,
    lead_sentences,
    lead_to_json,
)
from kdtrain.runtime.files import temporary_folder, write_text
from kdtrain.runtime.locations import absolute_name
from kdtrain.runtime.processes import Job
from kdtrain.runtime.ranks import Ranks
from kdtrain.runtime.regular_files import read_text
from kdtrain.store.checkpoint import fingerprint, load_card
from kdtrain.store.kept_models import kept_models

logger = logging.getLogger(__name__)

FILE = "teacher_lead.json"
"""Name of the file in the run directory."""

_LARGEST = 1 << 20  # bytes; the file has about 1,000
_EPOCHS = 3
_MOST_IMAGES = 10_000
_FEWEST_IMAGES = 1000  # a student of fewer images would make every teacher look good
_SHARE = 20  # the quick student takes at most one in so many of the steps of the run's student
_MOST_WORK = 200_000_000_000  # multiply-adds of all forward passes: 6,500 images by resnet20


def measure_lead(session: Session, directory: Path, teacher: TrainedTeacher) -> TeacherLead | None:
    """Measures the teacher on the held-out images of this run, logs its lead, and files it.

    The lead is that over the kept plain student of these data, if it was measured on the same images
    and was trained for at least half as long as this run's. Otherwise a quick student is trained in a
    temporary folder, unless the run's own training is very short. The test set is not read. A resumed
    run reads the file, so that a student which was kept meanwhile does not change the figures.

    Args:
        session: configuration, data and jobs.
        directory: the run directory.
        teacher: the teacher, trained; the first seed's in a comparison.

    Returns:
        The figures; None without held-out images, and on ranks other than 0.
    """
    if count_validation(session.dataset, session.config) == 0:
        return None
    first = session.ranks.rank == 0
    lead = _read(directory / FILE) if first else None
    if session.ranks.any_rank(lead is not None):
        return lead
    work = partial(_evaluate, session, teacher)
    [(evaluation, held_out)] = session.run(
        [Job("the teacher on held-out images", work, session.teacher_cores(teacher))]
    )
    if not first:
        return None
    baseline = _kept_student(session, held_out)
    if baseline is None and session.ranks.size == 1:
        baseline = _quick_student(session)
    lead = TeacherLead(
        images=evaluation.images,
        accuracy=evaluation.accuracy,
        calibration_error=evaluation.calibration_error,
        may_have_seen=any(
            member.saved is None or member.saved.card.held_out != held_out for member in teacher.members
        ),
        retrains=session.config.mode == "compare" and not session.config.has_teacher_files,
        baseline=baseline,
    )
    for sentence in lead_sentences(lead):
        logger.info(sentence)
    write_text(directory / FILE, json.dumps(lead_to_json(lead), indent=2) + "\n")
    return lead


def _read(path: Path) -> TeacherLead | None:
    """Returns the figures in a file; None if there is none, or it is damaged."""
    try:
        return lead_from_json(json.loads(read_text(path, _LARGEST)))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _evaluate(session: Session, teacher: TrainedTeacher) -> tuple[Evaluation, str]:
    """Returns the teacher's figures on the held-out images, and the images' fingerprint as in a card."""
    config = session.config
    images = validation_loader(session.dataset, config, config.seed, session.device, session.ranks)
    split, numbers = validation_images(session.dataset, config, config.seed)
    network = teacher.build(session.device)
    of_members = member_logits(network, images, split, numbers, "teacher on held-out images")
    held_out = fingerprint({"labels": images.targets}, images.fingerprint)
    return Evaluation.from_logits(combined(network, of_members), images.targets), held_out


def _kept_student(session: Session, held_out: str) -> Baseline | None:
    """Returns the kept plain student if its accuracy compares with the teacher's."""
    config = session.config
    enough = config.epochs_for("student") * count_training(session.dataset, config) / 2
    for path in kept_models(config.models, "student"):
        with contextlib.suppress(CheckpointError):
            card = load_card(path)
            if (
                is_of(card, session.dataset)
                and card.arch == absolute_name(config.student_arch)
                and card.held_out == held_out
                and card.epochs * card.images >= enough
                and 0 <= card.accuracy <= 1  # not NaN, which is an unknown accuracy
            ):
                return Baseline("kept", card.arch, card.epochs, card.images, card.accuracy)
    return None


def _quick_student(session: Session) -> Baseline | None:
    """Trains a plain student for a moment; returns None if even that would take too long."""
    config, dataset = session.config, session.dataset
    budget = config.epochs_for("student") * count_training(dataset, config)
    if budget < _SHARE * _EPOCHS * _FEWEST_IMAGES:
        return None
    with temporary_folder(Path(tempfile.gettempdir())) as folder:
        work = partial(_train_quickly, config, dataset, session.device, folder, budget // _SHARE)
        name = "training the quick student"
        [baseline] = session.run([Job(name, work, session.cores(config.student_arch))])
    return baseline


def _train_quickly(
    config: FitConfig, dataset: Dataset, device: str, folder: Path, passes: int
) -> Baseline | None:
    """Trains the plain student on a part of the training images.

    Args:
        config: configuration of the command.
        dataset: the images.
        device: device of the training.
        folder: the run directory.
        passes: limit on epochs times images.
    """
    # The network is built here, in the job's process: a factory may draw random numbers.
    network = build_model(config.student_arch, dataset.image_shape, dataset.num_classes)
    work = count_multiply_adds(network, dataset.image_shape)
    images = min(_MOST_IMAGES, min(passes, _MOST_WORK // max(work, 1)) // _EPOCHS)
    if images < _FEWEST_IMAGES:
        return None
    settings: dict[str, Any] = {
        "epochs": _EPOCHS,
        "limit_train": None,
        "val_size": None,
        "plugin": (),
        "early_stopping": None,
    }
    spec = FitSpec("student", config.seed, folder, label="quick student", settings=settings)
    fit = Fit(spec, spec.config(config), _part(dataset, config, images), device)
    card = fit.train(Ranks()).saved.card
    return Baseline("quick", card.arch, card.epochs, card.images, card.accuracy)


def _part(dataset: Dataset, config: FitConfig, images: int) -> Dataset:
    """Returns a data set of some training images and the held-out images, without the test images.

    The training images are evenly spaced, because images are often sorted by class.
    """
    training, held_out = hold_out(dataset.train, _drawn(dataset, config), config.seed)
    training = training[: config.limit_train]
    validation = dataset.validation if len(held_out) == 0 else dataset.train.take(held_out)
    assert validation is not None, "the caller has checked that there are held-out images"
    chosen = dataset.train.take(training[_spread(len(training), images)])
    return dataclasses.replace(dataset, train=chosen, validation=validation, test=_none_of(validation))


def _drawn(dataset: Dataset, config: FitConfig) -> int:
    """Returns the number of training images that are held out: none if the data have their own."""
    has_own = dataset.validation is not None and config.val_size is None
    return 0 if has_own else count_validation(dataset, config)


def _spread(count: int, wanted: int) -> npt.NDArray[np.int64]:
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))


def _none_of(split: Split) -> Split:
    return split.take(np.empty(0, np.int64))
