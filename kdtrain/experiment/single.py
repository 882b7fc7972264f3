"""One fit of mode teacher, student or student_kd, with the teacher that a student needs."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from kdtrain.experiment.chain import run_chain
from kdtrain.experiment.config_file import absolute_paths
from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.modes import MODES
from kdtrain.experiment.rehearsal import rehearse
from kdtrain.experiment.result import TestedModel
from kdtrain.experiment.session import Session
from kdtrain.experiment.teacher import describe_teacher
from kdtrain.runtime.files import make_folder, write_text
from kdtrain.store.checkpoint import SavedModel
from kdtrain.store.run_directory import run_directory

logger = logging.getLogger(__name__)

_OWN_TEACHER = "teacher"  # a run's folder for the teacher that is trained first


def run_single(session: Session, resume: Path | None = None) -> TestedModel:
    """Trains the network of mode teacher, student or student_kd, and returns it tested.

    Args:
        session: the configuration and the data.
        resume: the directory of a run to go on with.
    """
    config = session.config
    taught = MODES[config.mode].has_teacher
    teacher = _known_teacher(session, resume) if taught else None
    rehearse(config, session.dataset, teacher)
    with run_directory(config.logdir, config.mode, resume) as directory:
        if taught:
            teacher = teacher or _own_teacher(session, directory, resumed=resume is not None)
            _record_teacher(session, directory, teacher)
        if config.is_chain and teacher is not None:
            trained = run_chain(session, directory, teacher)
        else:
            if teacher is not None:
                session.prepare_soft_labels({config.seed: teacher})
            trained = session.run([session.training(FitSpec(config.mode, config.seed, directory, teacher))])[
                0
            ]
        session.keep(trained)
    return trained


def _known_teacher(session: Session, resume: Path | None) -> SavedModel | None:
    """Returns the teacher that is there, or None where the run trains one of its own.

    A run that has begun to do so goes on with it, whatever teachers there are by now.
    """
    named = session.config.teacher_checkpoint is not None
    if resume is not None and not named and (resume / _OWN_TEACHER).is_dir():
        return None
    teacher = session.find_teacher()
    if teacher is not None:
        logger.info(describe_teacher(teacher, session.config, session.dataset))
    return teacher


def _own_teacher(session: Session, directory: Path, *, resumed: bool) -> SavedModel:
    """Trains a teacher for the run in ``directory``, or goes on with it."""
    if resumed:
        logger.info(f"The teacher is this run's own, in {directory / _OWN_TEACHER}.")
    else:
        where = f"for {session.dataset.name} in {session.config.models}"
        logger.info(f"There is no teacher {where} yet: training one first.")
    if session.ranks.rank == 0:
        make_folder(directory / _OWN_TEACHER)  # first: by it, --resume knows whose teacher it is
        write_text(directory / "config.toml", absolute_paths(session.config).to_toml())
    trained = session.run(
        [session.training(FitSpec("teacher", session.config.seed, directory / _OWN_TEACHER))]
    )[0]
    session.keep(trained)
    return trained.saved


def _record_teacher(session: Session, directory: Path, teacher: SavedModel) -> None:
    """Makes the run's config.toml name the teacher, so that a resumed run has the same one."""
    config = dataclasses.replace(
        session.config, teacher_checkpoint=teacher.path, teacher_arch=teacher.card.arch
    )
    if session.ranks.rank == 0:
        write_text(directory / "config.toml", absolute_paths(config).to_toml())
