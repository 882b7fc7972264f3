"""Distils several times in a row: through teacher assistants, over generations of students."""

from __future__ import annotations

import logging
from pathlib import Path

from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.result import TestedModel
from kdtrain.experiment.session import Session
from kdtrain.store.checkpoint import SavedModel

logger = logging.getLogger(__name__)


def run_chain(session: Session, directory: Path, teacher: SavedModel) -> TestedModel:
    """Trains each network of a chain with the one before as its teacher; returns the last.

    Teacher assistants are networks of sizes in between (Mirzadeh et al. 2020, "Improved Knowledge
    Distillation via Teacher Assistant", section 3); generations are students of one architecture,
    each from first weights of its own (Furlanello et al. 2018, "Born Again Neural Networks",
    section 3).

    Args:
        session: the configuration and the data.
        directory: gets a run directory per network; what one of them holds already is gone on with.
        teacher: of the first network.
    """
    config = session.config
    stages = [(f"assistant_{i}", arch, 0) for i, arch in enumerate(config.assistant_arch, 1)]
    stages += [(f"generation_{i + 1}", config.student_arch, i) for i in range(config.generations)]
    trained = []
    for number, (name, arch, draw) in enumerate(stages, 1):
        session.prepare_soft_labels({config.seed: teacher})
        settings = {"student_arch": arch}
        plan = FitSpec("student_kd", config.seed, directory / name, teacher, name, settings, draw)
        trained += session.run([session.training(plan)])
        teacher = trained[-1].saved
        if number < len(stages):
            logger.info(
                f"{name} ({arch}): test accuracy {trained[-1].test.accuracy:.2%}; it teaches the next one."
            )
    return trained[-1]
