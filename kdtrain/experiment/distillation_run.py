"""The run of mode student_kd: its run directory, and its teacher, which is trained first if there is none."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.rehearsal import rehearse
from kdtrain.experiment.result import keep_best
from kdtrain.experiment.session import Session
from kdtrain.experiment.settings.load import absolute_paths
from kdtrain.experiment.teacher_figures import measured
from kdtrain.experiment.teachers.find import TrainedTeacher, describe_teacher, find_teacher, trained_here
from kdtrain.experiment.warm_start import announce_first_weights
from kdtrain.runtime.bars import command_bar, expect_epochs
from kdtrain.runtime.files import make_folder, write_text
from kdtrain.store.run_directory import run_directory

logger = logging.getLogger(__name__)

_OWN_TEACHER = "teacher"  # folder of the run's own teacher


@contextlib.contextmanager
def distillation_run(session: Session, resume: Path | None = None) -> Iterator[tuple[Path, TrainedTeacher]]:
    """Yields the run directory and the teacher of a student_kd.

    config.toml names the teacher before a student is trained, so a resumed run has the same teacher.

    Args:
        session: configuration, data and jobs.
        resume: directory of a run to resume.
    """
    config = session.config
    teacher = _existing_teacher(session, resume)
    if resume is None:
        announce_first_weights(config, session.dataset)
    rehearse(config, session.dataset, teacher)
    with run_directory(config.logdir, config.mode, resume, config.name) as directory, command_bar():
        if teacher is None:
            expect_epochs(config.epochs_for("teacher") + config.epochs_for("student"))
            teacher = _train_teacher(session, directory, resumed=resume is not None)
        if session.ranks.rank == 0:
            write_text(directory / "config.toml", absolute_paths(teacher.named_in(config)).to_toml())
        yield directory, measured(session, teacher)


def _existing_teacher(session: Session, resume: Path | None) -> TrainedTeacher | None:
    """Returns the teacher that exists already, or None if the run trains its own.

    A resumed run that has begun to train its own teacher continues with it, even if the model-save
    directory has a teacher by now.
    """
    named = session.config.has_teacher_files
    if resume is not None and not named and (resume / _OWN_TEACHER).is_dir():
        return None
    teacher = find_teacher(session.config, session.dataset, session.ranks)
    if teacher is not None:
        logger.info(describe_teacher(teacher, session.config, session.dataset))
    return teacher


def _train_teacher(session: Session, directory: Path, *, resumed: bool) -> TrainedTeacher:
    """Trains the run's own teacher, or resumes its training."""
    config = session.config
    if resumed:
        logger.info(f"The teacher is this run's own, in {directory / _OWN_TEACHER}.")
    else:
        logger.info(
            f"There is no teacher for {session.dataset.name} in {config.models} yet: training one first."
        )
    if session.ranks.rank == 0:
        make_folder(directory / _OWN_TEACHER)  # before config.toml: --resume recognises an own teacher by it
        write_text(directory / "config.toml", absolute_paths(config).to_toml())
    [model] = session.run([session.fit_and_test_job(_teacher_spec(session, directory))])
    keep_best([model], config, session.ranks)
    return trained_here(model.saved)


def _teacher_spec(session: Session, directory: Path) -> FitSpec:
    return FitSpec("teacher", session.config.seed, directory / _OWN_TEACHER)
