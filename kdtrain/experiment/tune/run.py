"""A search as it is ordered, and a finished one with its files, for the command line and for Python."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtrain.errors import UsageError
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.session import Session
from kdtrain.experiment.settings import flag_of
from kdtrain.experiment.tune.halving import DEFAULT_BUDGET, parse_budget
from kdtrain.experiment.tune.search import BEST, check_order, run_tuning
from kdtrain.experiment.tuned import TUNE_SEEDS, begun_tuning
from kdtrain.report.tuning import CAVEAT, FILE, Tuning, verdict
from kdtrain.runtime.value_checks import check_value


@dataclass(frozen=True, eq=False, repr=False)
class TuneRun:
    """A finished search and its files.

    Attributes:
        tuning: trials and choice of each model.
        directory: the run directory.
    """

    tuning: Tuning
    directory: Path

    @property
    def best(self) -> Path:
        """The settings that were chosen, as the argument ``config`` of ``compare`` takes them."""
        return self.directory / BEST

    @property
    def settings(self) -> dict[str, Mapping[str, Any]]:
        """The settings that were chosen, by model."""
        return {model: result.settings for model, result in self.tuning.models.items()}

    @property
    def report(self) -> Path:
        """The page with all trials."""
        return self.directory / "report.html"

    @property
    def figures(self) -> Path:
        """The trials as JSON."""
        return self.directory / FILE

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the search shows, as the command line prints it."""
        return (f"{verdict(self.tuning)} {CAVEAT}", *filter(None, [self.tuning.note]))

    def __repr__(self) -> str:
        return f"<TuneRun {verdict(self.tuning)[:-1]} ({self.directory})>"


def run_tune(
    config: FitConfig,
    resume: Path | None,
    *,
    budget: str | None = None,
    search: Sequence[str] | None = None,
    tune_seeds: int | None = None,
) -> TuneRun:
    """Chooses settings for every student on held-out images.

    Args:
        config: configuration of the search.
        resume: directory of the search to resume; None for a new one.
        budget: minutes for everything or number of trials, as ``--budget`` takes them.
        search: values to choose from, as ``--search`` takes them.
        tune_seeds: number of seeds that each trial is trained with.

    Raises:
        UsageError: a value is not allowed, or does not go with a search that is resumed.
    """
    order = _order({"budget": budget, "search": search, "tune_seeds": tune_seeds}, resume)
    try:
        check_order(config, order)
    except UsageError as error:
        raise error if resume is None else UsageError(f"{resume / FILE}: {error}") from error
    return TuneRun(*run_tuning(Session(config), order, resume))


def _order(given: Mapping[str, Any], resume: Path | None) -> Tuning:
    """Returns the order of a new search, or that of the search that is resumed, with its state."""
    if resume is not None:
        for name, value in given.items():
            if value is not None:
                raise UsageError(
                    f"{flag_of(name)}: a resumed search keeps its own. Leave the flag out, or start a new "
                    "search."
                )
        return begun_tuning(resume)
    seeds = 1 if given["tune_seeds"] is None else given["tune_seeds"]
    check_value("--tune-seeds", seeds, TUNE_SEEDS)
    budget = DEFAULT_BUDGET if given["budget"] is None else str(given["budget"])
    parse_budget(budget)
    return Tuning(budget=budget, searches=tuple(given["search"] or ()), seeds=seeds)
