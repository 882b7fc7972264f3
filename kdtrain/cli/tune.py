"""The command ``kdtrain tune``: the choice of settings for every student of a comparison."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
from pathlib import Path
from typing import TYPE_CHECKING

from kdtrain.cli.fit import SECONDS_TO_END
from kdtrain.cli.output import Output
from kdtrain.cli.parser import settings_in
from kdtrain.errors import UsageError, clipped
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.config_file import load_config, new_config, resumed_config
from kdtrain.experiment.halving import DEFAULT_BUDGET, parse_budget
from kdtrain.experiment.settings import flag_of
from kdtrain.runtime import launch
from kdtrain.runtime.console import ignore_broken_pipe
from kdtrain.runtime.signals import defer_signals, force_exit_after_signal, raise_on_sigterm
from kdtrain.runtime.value_checks import between
from kdtrain.store.run_directory import latest_run

if TYPE_CHECKING:
    from kdtrain.report.tuning import Tuning

# Imported with signals deferred, because an interrupted import leaves a broken module. Includes modules
# that only forked children use.
_NEEDED = ("kdtrain.experiment.tune", "tensorboardX.summary")

_MOST_SEEDS = 100
_OF_THE_SEARCH = ("budget", "search", "tune_seeds")


def run(options: argparse.Namespace) -> int:
    """Searches and prints the results; a closed stdout, as with ``| head``, does not end the search."""
    with ignore_broken_pipe("stdout"):
        flags = settings_in(options)
        resume: Path | None = getattr(options, "resume", None)
        if resume is None:
            config = dataclasses.replace(new_config(flags, options.config), tuned=None)
        else:
            if options.config is not None:
                raise UsageError("--resume reads the configuration of the search: leave --config out.")
            resume = latest_run(load_config(flags).logdir, "tune") if resume == Path() else resume
            config = resumed_config(flags, resume)
        _check(config)
        raise_on_sigterm()
        with force_exit_after_signal(SECONDS_TO_END):
            _tune(config, options, resume)
    return 0


def _check(config: FitConfig) -> None:
    """Raises UsageError for settings with which nothing can be tuned."""
    if config.nproc_per_node > 1 or launch.rank() is not None:
        raise UsageError(
            "kdtrain tune trains its trials side by side, each in one process: leave --nproc-per-node and "
            "the launcher out."
        )
    if config.mode != "compare":
        raise UsageError(
            f"kdtrain tune is for the students of a comparison, not for --mode {config.mode}: "
            "leave it out, or give --mode compare."
        )
    for name in ("grid", "teacher_per_seed"):
        if getattr(config, name):
            raise UsageError(f"{flag_of(name)} is for kdtrain fit: leave it out here.")
    if config.val_size == 0:
        raise UsageError(
            "kdtrain tune chooses by held-out images, but --val-size 0 holds none out: leave it out."
        )


def _tune(config: FitConfig, options: argparse.Namespace, resume: Path | None) -> None:
    with defer_signals():
        for module in _NEEDED:
            importlib.import_module(module)
    from kdtrain.experiment.session import Session
    from kdtrain.experiment.tune import check_order, next_command, run_tuning
    from kdtrain.report.tuning import CAVEAT, FILE, tuning_table, verdict

    order = _order(options, resume)
    check_order(config, order)
    tuning, directory = run_tuning(Session(config), order, resume)
    output = Output()
    output.print(tuning_table(tuning))
    output.sentence(f"{verdict(tuning)} {CAVEAT}")
    output.text(f"Report: {directory / 'report.html'}")
    output.text(f"Figures: {directory / FILE}")
    output.text(f"Next: {next_command(directory)}")


def _order(options: argparse.Namespace, resume: Path | None) -> Tuning:
    """Returns the order of a new search, or that of the search that is resumed, with its state.

    Raises:
        UsageError: a flag has a wrong value, or does not go with --resume.
    """
    from kdtrain.experiment.tuned import begun_tuning
    from kdtrain.report.tuning import Tuning

    given = [name for name in _OF_THE_SEARCH if hasattr(options, name)]
    if resume is not None:
        if given:
            raise UsageError(
                f"{flag_of(given[0])}: a resumed search keeps its own. Leave the flag out, or start a new "
                "search."
            )
        return begun_tuning(resume)
    seeds = getattr(options, "tune_seeds", 1)
    is_allowed, demand = between(1, _MOST_SEEDS)
    if not is_allowed(seeds):
        raise UsageError(f"--tune-seeds is {clipped(seeds)}: it {demand}.")
    budget = getattr(options, "budget", DEFAULT_BUDGET)
    parse_budget(budget)
    return Tuning(budget=budget, searches=tuple(getattr(options, "search", ())), seeds=seeds)
