"""The measurement of the teacher's lead over a plain student, before students start."""

from __future__ import annotations

import contextlib
import json
import logging
from functools import partial
from pathlib import Path

from kdtrain.data.dataset import Normalization
from kdtrain.errors import CheckpointError
from kdtrain.experiment.history.files import LEAD
from kdtrain.experiment.loaders import count_training, count_validation, validation_images, validation_loader
from kdtrain.experiment.session import Session
from kdtrain.experiment.teachers.files import TeacherFile, is_of
from kdtrain.experiment.teachers.find import TrainedTeacher, combined, member_logits
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.report.teacher_lead import (
    Baseline,
    LeadMember,
    TeacherLead,
    lead_from_json,
    lead_sentences,
    lead_to_json,
)
from kdtrain.runtime.files import write_text
from kdtrain.runtime.locations import absolute_name
from kdtrain.runtime.processes import Job
from kdtrain.runtime.regular_files import read_text
from kdtrain.store.checkpoint import fingerprint, load_card
from kdtrain.store.kept_models import kept_models

logger = logging.getLogger(__name__)

FILE = LEAD
"""Name of the file in the run directory."""

_LARGEST = 1 << 20  # bytes; the file has about 1,000


def measure_lead(session: Session, directory: Path, teacher: TrainedTeacher) -> TeacherLead | None:
    """Measures the teacher on the held-out images of this run, logs its lead, and files it.

    The lead is that over the kept plain student of these data, if it was measured on the same images
    and was trained for at least half as long as this run's. The test set is not read. A resumed run
    reads the file, so that a student which was kept meanwhile does not change the figures.

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
    [(evaluation, accuracies, held_out)] = session.run(
        [Job("the teacher on held-out images", work, session.teacher_cores(teacher))]
    )
    if not first:
        return None
    lead = TeacherLead(
        images=evaluation.images,
        accuracy=evaluation.accuracy,
        calibration_error=evaluation.calibration_error,
        may_have_seen=any(
            member.saved is None or member.saved.card.held_out != held_out for member in teacher.members
        ),
        baseline=_kept_student(session, held_out),
        members=tuple(map(_member, teacher.members, accuracies)),
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


def _member(file: TeacherFile, accuracy: float) -> LeadMember:
    normalization = file.normalization or Normalization((), ())  # a table takes no images
    return LeadMember(file.path.name, accuracy, normalization.mean, normalization.std)


def _evaluate(session: Session, teacher: TrainedTeacher) -> tuple[Evaluation, list[float], str]:
    """Returns the teacher's figures on the held-out images, its members' accuracies, and a fingerprint.

    The fingerprint is that of the images, as in a card.
    """
    config = session.config
    images = validation_loader(session.dataset, config, config.seed, session.device, session.ranks)
    split, numbers = validation_images(session.dataset, config, config.seed)
    network = teacher.build(session.device)
    of_members = member_logits(network, images, split, numbers, "teacher on held-out images")
    held_out = fingerprint({"labels": images.targets}, images.fingerprint)
    accuracies = [float((logits.argmax(axis=1) == images.targets).mean()) for logits in of_members]
    return Evaluation.from_logits(combined(network, of_members), images.targets), accuracies, held_out


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
                return Baseline(card.arch, card.epochs, card.images, card.accuracy)
    return None
