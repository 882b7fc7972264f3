"""Carries out --grid: trains each combination on one seed, and chooses by the held-out images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.grid import choose, combinations, parse_grid
from kdtrain.experiment.result import FitResult
from kdtrain.experiment.session import Session
from kdtrain.report.grid_result import Candidate, Choice, Settings, settings_text

logger = logging.getLogger(__name__)

_OF_ALL = ("lr",)
"""What concerns students without a teacher as well."""


@dataclass(frozen=True)
class Chosen:
    """What was chosen for a model, and the fit that won."""

    choice: Choice
    fitted: FitResult


def choose_settings(
    session: Session, students: Sequence[str], plan: Callable[[str, Settings], FitSpec]
) -> dict[str, Chosen]:
    """Returns what was chosen for each model for which there is something to choose.

    Every model gets its own choice among all that concerns it, so that none is tuned more than the
    others. The test set is not looked at.

    Args:
        session: the configuration and the data.
        students: the models.
        plan: makes the fit of a model with some settings.
    """
    grid = parse_grid(session.config.grid)
    tried = {
        model: combinations({name: grid[name] for name in grid if model == "student_kd" or name in _OF_ALL})
        for model in students
    }
    fits = [(model, plan(model, own)) for model in students for own in tried[model] if own]
    if not fits:
        return {}
    logger.info(f"Grid: {len(fits)} fits with seed {session.config.seed}; the held-out images choose.")
    fitted = session.run([session.fitting(one) for _, one in fits])
    chosen = {}
    for model in dict(fits):
        own = [(one, fit) for (name, one), fit in zip(fits, fitted, strict=True) if name == model]
        chosen[model] = _best(own, tried[model])
        best = chosen[model].choice.chosen
        logger.info(
            f"{model}: {settings_text(best.settings)} is best, held-out accuracy {best.accuracy:.2%}."
        )
    return chosen


def _best(fits: list[tuple[FitSpec, FitResult]], settings: list[Settings]) -> Chosen:
    candidates = []
    for (plan, fitted), values in zip(fits, settings, strict=True):
        metrics = fitted.saved.card.metrics
        folder = f"{plan.directory.parent.name}/{plan.directory.name}"
        candidates.append(Candidate(values, metrics["eval/accuracy"], metrics["eval/cross_entropy"], folder))
    choice = choose(candidates)
    return Chosen(choice, fits[choice.candidates.index(choice.chosen)][1])
