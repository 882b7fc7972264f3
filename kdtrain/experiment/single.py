"""One fit of mode teacher, student or student_kd."""

from __future__ import annotations

from pathlib import Path

from kdtrain.experiment.distillation_run import distillation_run
from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.modes import MODES
from kdtrain.experiment.rehearsal import rehearse
from kdtrain.experiment.result import TestedModel, keep_best
from kdtrain.experiment.session import Session
from kdtrain.experiment.teachers.find import TrainedTeacher
from kdtrain.experiment.warm_start import announce_first_weights
from kdtrain.store.run_directory import run_directory


def run_single(session: Session, resume: Path | None = None) -> TestedModel:
    """Trains the network of mode teacher, student or student_kd, and returns it tested.

    Args:
        session: configuration, data and jobs.
        resume: directory of a run to resume.
    """
    config = session.config
    if MODES[config.mode].has_teacher:
        with distillation_run(session, resume) as (directory, teacher):
            session.run(session.soft_label_jobs({config.seed: teacher}))
            return _train(session, directory, teacher)
    if resume is None:
        announce_first_weights(config, session.dataset)
    rehearse(config, session.dataset, None)
    with run_directory(config.logdir, config.mode, resume, config.name) as directory:
        return _train(session, directory)


def _train(session: Session, directory: Path, teacher: TrainedTeacher | None = None) -> TestedModel:
    config = session.config
    tuned = session.tuned.get(config.mode, {})
    spec = FitSpec(config.mode, config.seed, directory, teacher, settings=tuned)
    [model] = session.run([session.fit_and_test_job(spec)])
    keep_best([model], config, session.ranks)
    return model
