"""The grid search of a comparison: all combinations of --grid, trained on one seed."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.grid import choose, combinations, parse_grid
from kdtrain.experiment.result import FitResult
from kdtrain.experiment.session import Session
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.metrics.names import ACCURACY, CROSS_ENTROPY
from kdtrain.report.grid_result import Candidate, GridResult, Settings, settings_text
from kdtrain.store.record import Model

logger = logging.getLogger(__name__)

_AFFECTING: Mapping[Model, tuple[str, ...]] = {
    "student_kd": ("temperature", "alpha", "lr"),
    "student_hard": ("alpha", "lr"),
    "student": ("lr",),
    "student_ls": ("lr",),
}
"""Settings of a grid that affect each student."""


def grid_trials(config: FitConfig, students: Sequence[Model]) -> list[tuple[Model, Settings, str]]:
    """Returns model, settings and folder of each fit of the grid."""
    grid = parse_grid(config.grid)
    return [
        (model, settings, f"grid/{model},{settings_text(settings)}")
        for model in students
        for settings in combinations({name: grid[name] for name in grid if name in _AFFECTING[model]})
        if settings
    ]


def search_grid(
    session: Session, students: Sequence[Model], make_spec: Callable[[Model, Settings, str], FitSpec]
) -> tuple[dict[Model, GridResult], dict[Model, tuple[FitSpec, FitResult]]]:
    """Trains all combinations of --grid for each model, and chooses each model's best.

    Every model is tuned over all settings that affect it, so that none has an advantage. The held-out
    images choose; the test set is not read.

    Args:
        session: configuration, data and jobs.
        students: the models.
        make_spec: returns the fit of a model with some settings, in a folder of the comparison.

    Returns:
        The results of the grid, and the best fits, by model; without models that have nothing to choose.
    """
    trials = grid_trials(session.config, students)
    if not trials:
        return {}, {}
    logger.info(f"Grid: {len(trials)} fits with seed {session.config.seed}; the held-out images choose.")
    specs = [make_spec(*trial) for trial in trials]
    fits = session.run([session.fit_job(spec) for spec in specs])
    results, best_fits = {}, {}
    for model in dict.fromkeys(model for model, _, _ in trials):
        rows = [
            (_candidate(settings, folder, fitted), spec, fitted)
            for (name, settings, folder), spec, fitted in zip(trials, specs, fits, strict=True)
            if name == model
        ]
        results[model] = choose([candidate for candidate, _, _ in rows])
        best = results[model].best
        [best_fits[model]] = [(spec, fitted) for candidate, spec, fitted in rows if candidate is best]
        logger.info(
            f"{model}: {settings_text(best.settings)} is best, held-out accuracy {best.accuracy:.2%}."
        )
    return results, best_fits


def _candidate(settings: Settings, folder: str, fitted: FitResult) -> Candidate:
    metrics = fitted.saved.card.metrics
    return Candidate(settings, metrics[ACCURACY], metrics[CROSS_ENTROPY], folder)
