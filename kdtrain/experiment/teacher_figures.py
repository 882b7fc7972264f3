"""The measurement of a teacher on held-out images, before students start."""

from __future__ import annotations

import dataclasses
import logging
from functools import partial

from kdtrain.experiment.loaders import count_validation, validation_images, validation_loader
from kdtrain.experiment.session import Session
from kdtrain.experiment.teachers.find import TeacherFigures, TrainedTeacher, combined, member_logits
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.runtime.processes import Job
from kdtrain.store.checkpoint import fingerprint

logger = logging.getLogger(__name__)


def measured(session: Session, teacher: TrainedTeacher) -> TrainedTeacher:
    """Returns a teacher with its figures on the held-out images of this run, and logs them.

    The test set is not read. There are no figures without held-out images, and on ranks other than 0.

    Args:
        session: configuration, data and jobs.
        teacher: the teacher, trained; the first seed's in a comparison.
    """
    if count_validation(session.dataset, session.config) == 0:
        return teacher
    work = partial(_evaluate, session, teacher)
    [figures] = session.run([Job("the teacher on held-out images", work, session.teacher_cores(teacher))])
    if session.ranks.rank != 0:
        return teacher
    logger.info(
        f"Teacher: {100 * figures.accuracy:.2f} % of {figures.images:,} held-out "
        f"image{'s' * (figures.images != 1)}, calibration error {100 * figures.calibration_error:.1f} %."
    )
    if figures.may_have_seen:
        logger.info("It may have been trained on some of these images, so its accuracy may be too high.")
    return dataclasses.replace(teacher, figures=figures)


def _evaluate(session: Session, teacher: TrainedTeacher) -> TeacherFigures:
    config = session.config
    images = validation_loader(session.dataset, config, config.seed, session.device, session.ranks)
    split, numbers = validation_images(session.dataset, config, config.seed)
    network = teacher.build(session.device)
    of_members = member_logits(network, images, split, numbers, "teacher on held-out images")
    evaluation = Evaluation.from_logits(combined(network, of_members), images.targets)
    held_out = fingerprint({"labels": images.targets}, images.fingerprint)  # as in a card
    return TeacherFigures(
        images=evaluation.images,
        accuracy=evaluation.accuracy,
        calibration_error=evaluation.calibration_error,
        may_have_seen=any(
            member.saved is None or member.saved.card.held_out != held_out for member in teacher.members
        ),
        members=tuple(float((logits.argmax(axis=1) == images.targets).mean()) for logits in of_members),
    )
