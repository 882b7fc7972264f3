"""The command ``kdtrain tune``: the choice of settings for every student of a comparison."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path

from kdtrain.cli.fit import SECONDS_TO_END
from kdtrain.cli.flags import config_flags, resume_flag, settings_in, whole_number
from kdtrain.cli.output import Stdout, print_next
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import tune_config
from kdtrain.experiment.tune.halving import DEFAULT_BUDGET
from kdtrain.runtime.console import ignore_write_errors
from kdtrain.runtime.signals import defer_signals, force_exit_after_signal, raise_on_sigterm

# Imported with signals deferred, because an interrupted import leaves a broken module. Includes modules
# that only forked children use.
_NEEDED = ("kdtrain.experiment.tune.search", "tensorboardX.summary")

_OF_THE_SEARCH = ("budget", "search", "tune_seeds")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.description = (
        "Choose settings of the students of a comparison on held-out images, by successive halving: a ninth "
        "of the epochs for all trials, a third for the best third of them, all epochs for the best of these. "
        "The plain student gets as many trials as the distilled one. If every --search lists values, up to "
        "--budget combinations are all trained to the end. The test set is not read."
    )
    parser.add_argument(
        "--budget",
        default=argparse.SUPPRESS,
        metavar="20m|N",
        help=f"minutes for everything, such as 20m, or number of trials of each student [{DEFAULT_BUDGET}]",
    )
    parser.add_argument(
        "--search",
        action="append",
        default=argparse.SUPPRESS,
        metavar="NAME=LOW..HIGH|V,V",
        help="values to choose from, for temperature, alpha, lr, weight_decay, views (on,off) or an argument "
        "of a plugin, such as dkd.beta=1..10 (repeatable) [sensible ranges; plugins keep their arguments]",
    )
    parser.add_argument(
        "--tune-seeds",
        type=whole_number,
        default=argparse.SUPPRESS,
        metavar="N",
        help="number of seeds that each trial is trained with [1]",
    )
    resume_flag(parser, "continue an interrupted search [the latest one in the log directory]")
    config_flags(parser)


def run(options: argparse.Namespace) -> int:
    """Searches and prints the results; a closed or full stdout does not end the search."""
    with ignore_write_errors("stdout"):
        resume: Path | None = getattr(options, "resume", None)
        config, resume = tune_config(settings_in(options), options.config, resume)
        raise_on_sigterm()
        with force_exit_after_signal(SECONDS_TO_END):
            _tune(config, options, resume)
    return 0


def _tune(config: FitConfig, options: argparse.Namespace, resume: Path | None) -> None:
    with defer_signals():
        for module in _NEEDED:
            importlib.import_module(module)
    from kdtrain.experiment.tune.search import next_command, run_tune
    from kdtrain.report.tuning import tuning_table

    given = {name: getattr(options, name, None) for name in _OF_THE_SEARCH}
    result = run_tune(config, resume, **given)
    output = Stdout()
    output.print(tuning_table(result.tuning), "")
    for sentence in result.sentences:
        output.sentence(sentence)
    output.text(f"Report: {result.report}")
    output.text(f"Figures: {result.figures}")
    print_next(output, next_command(result.directory))
