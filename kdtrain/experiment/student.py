"""The training of one network, mode teacher, student or student_kd: of the last with its teacher first."""

from __future__ import annotations

import logging
from pathlib import Path

from kdtrain.experiment.dry_run import dry_run
from kdtrain.experiment.fit import FitSpec
from kdtrain.experiment.modes import MODES
from kdtrain.experiment.result import TestedModel, keep_best
from kdtrain.experiment.session import Session, measured
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import absolute_paths, tuned_settings
from kdtrain.experiment.teachers.find import TrainedTeacher, describe_teacher, find_teacher, trained_here
from kdtrain.experiment.warm_start import announce_first_weights
from kdtrain.runtime.bars import command_bar, expect_epochs
from kdtrain.runtime.files import make_folder, write_text
from kdtrain.store.run_directory import run_directory

logger = logging.getLogger(__name__)

_OWN_TEACHER = "teacher"  # folder of the run's own teacher


def run_fit(config: FitConfig, resume: Path | None) -> TestedModel:
    """Trains the network of mode teacher, student or student_kd.

    Args:
        config: configuration of the fit.
        resume: directory of a run to resume; None for a new one.
    """
    return run_single(Session.open(config), resume)


def run_single(session: Session, resume: Path | None = None) -> TestedModel:
    """Trains the network of a session's mode, and returns it tested.

    config.toml names the teacher before a student is trained, so a resumed run has the same teacher.
    """
    config, teacher = session.config, None
    has_teacher = MODES[config.mode].has_teacher
    if has_teacher:
        teacher = _existing_teacher(session, resume)
    if resume is None:
        announce_first_weights(config, session.dataset)
    dry_run(config, session.dataset, teacher)
    with run_directory(config.logdir, config.mode, resume, config.name) as directory, command_bar():
        if has_teacher:
            teacher = _taught(session, directory, teacher, resumed=resume is not None)
            session.run(session.soft_label_jobs({config.seed: teacher}))
        tuned = tuned_settings(config).get(config.mode, {})
        spec = FitSpec(MODES[config.mode].fit, config.seed, directory, teacher, settings=tuned)
        [model] = session.run([session.fit_and_test_job(spec)])
        keep_best([model], config, session.ranks)
        return model


def _taught(
    session: Session, directory: Path, teacher: TrainedTeacher | None, *, resumed: bool
) -> TrainedTeacher:
    """Returns the teacher, trained first if there is none, named in config.toml, with its figures."""
    config = session.config
    if teacher is None:
        expect_epochs(config.epochs_for("teacher") + config.epochs_for("student"))
        teacher = _train_teacher(session, directory, resumed=resumed)
    if session.ranks.rank == 0:
        write_text(directory / "config.toml", absolute_paths(teacher.named_in(config)).to_toml())
    return measured(session, teacher)


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
    spec = FitSpec("teacher", config.seed, directory / _OWN_TEACHER)
    [model] = session.run([session.fit_and_test_job(spec)])
    keep_best([model], config, session.ranks)
    return trained_here(model.saved)
