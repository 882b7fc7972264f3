"""A chain of distillations: teacher assistants, then generations of students."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path

from kdtrain.experiment.distillation_run import distillation_run
from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.result import TestedModel, keep_best
from kdtrain.experiment.session import Session
from kdtrain.experiment.teacher import trained_here

logger = logging.getLogger(__name__)


def run_chain(session: Session, resume: Path | None = None) -> TestedModel:
    """Trains each network of a chain with the previous one as its teacher; returns the last.

    Teacher assistants are networks of intermediate size (Mirzadeh et al. 2020, "Improved Knowledge
    Distillation via Teacher Assistant", section 3). Generations are students of one architecture,
    each from its own initial weights (Furlanello et al. 2018, "Born Again Neural Networks",
    section 3). Each network has a run directory within the chain's.

    Args:
        session: configuration, data and jobs.
        resume: directory of a chain to resume.
    """
    config = session.config
    stages = [(f"assistant_{i}", arch, 0) for i, arch in enumerate(config.assistant_arch, 1)]
    stages += [(f"generation_{i + 1}", config.student_arch, i) for i in range(config.generations)]
    last, _, _ = stages[-1]
    tuned = session.tuned.get("student_kd", {})

    def specs(directory: Path) -> list[FitSpec]:
        return [
            FitSpec(
                "student_kd",
                config.seed,
                directory / name,
                label=name,
                settings={**tuned, "student_arch": arch},
                init_index=init_index,
            )
            for name, arch, init_index in stages
        ]

    with distillation_run(session, resume) as (directory, teacher):
        for (name, arch, _), untaught in zip(stages, specs(directory), strict=True):
            session.run(session.soft_label_jobs({config.seed: teacher}, arch))
            spec = dataclasses.replace(untaught, teacher=teacher)
            [model] = session.run([session.fit_and_test_job(spec)])
            teacher = trained_here(model.saved)
            if name != last:
                accuracy = f"test accuracy {model.test.accuracy:.2%}"
                logger.info(f"{name} ({arch}): {accuracy}; it is the teacher of the next one.")
        keep_best([model], config, session.ranks)
    return model
