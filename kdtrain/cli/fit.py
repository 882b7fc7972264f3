"""The command ``kdtrain fit``: one training run, or a comparison."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib
import json
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from textwrap import fill

from kdtrain.cli.flags import config_flags, json_flag, resume_flag, settings_in
from kdtrain.cli.launch import as_rank, shared_facts
from kdtrain.cli.output import Stdout, after_comparison, after_fit, only_json
from kdtrain.cluster.guard import run_guarded
from kdtrain.cluster.launch import connect_peers, launch
from kdtrain.errors import UsageError
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import fit_config
from kdtrain.runtime.console import ignore_write_errors
from kdtrain.runtime.locations import short_name
from kdtrain.runtime.ranks import rank
from kdtrain.runtime.signals import defer_signals, force_exit_after_signal, raise_on_sigterm
from kdtrain.store.record import RESULT

# Imported with signals deferred, because an interrupted import leaves a broken module. Includes modules
# that only forked children use.
_NEEDED = ("kdtrain.experiment.student", "tensorboardX.summary")
_NEEDED_TO_COMPARE = ("kdtrain.experiment.compare", *_NEEDED)

SECONDS_TO_END = 4.5  # after Ctrl-C; children get 4 s of them


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    groups = config_flags(parser)
    networks, output = groups["what to train"], groups["output"]
    resume_flag(networks, "continue an interrupted run [the latest of the mode]")
    networks.add_argument(
        "--check",
        action="store_true",
        default=argparse.SUPPRESS,
        help="try it on two batches, in seconds, and leave no file",
    )
    json_flag(output, "the result as one JSON object")


def run(options: argparse.Namespace) -> int:
    """Trains and prints the results; a closed or full stdout does not end the fit."""
    with ignore_write_errors("stdout"):
        return _run(options)


def _run(options: argparse.Namespace) -> int:
    flags = settings_in(options)
    resume: Path | None = getattr(options, "resume", None)
    check = hasattr(options, "check")
    if resume is not None and check:
        raise UsageError("--check is for a new run, and --resume for an existing one: leave one of them out.")
    config, resume = fit_config(flags, options.config, resume)
    raise_on_sigterm()
    if config.nproc_per_node > 1 and rank() is None:
        return launch(options.words, config.nproc_per_node)
    other_ranks = connect_peers(shared_facts(config)) if rank() is not None else None
    with as_rank(config) as config:
        fit = partial(_fit_as_json if options.json else _fit, config, resume, check=check)
        if other_ranks is not None:
            return run_guarded(fit, other_ranks)
        fit()
    return 0


def _fit(config: FitConfig, resume: Path | None, *, check: bool) -> None:
    with _ready(config):
        output = Stdout()
        if check:
            _check(config, output)
        elif config.mode == "compare":
            _compare(config, resume, output)
        else:
            _single(config, resume, output)


def _fit_as_json(config: FitConfig, resume: Path | None, *, check: bool) -> None:
    with only_json() as print_json, _ready(config):
        from kdtrain.experiment.dry_run import try_out
        from kdtrain.experiment.student import run_fit

        if check:
            print_json({"networks": [dataclasses.asdict(network) for network in try_out(config)]})
            return
        if config.mode == "compare":
            from kdtrain.experiment.compare import run_compare

            compared = run_compare(config, resume)
            directory, file = compared.directory, compared.figures
        else:
            directory = run_fit(config, resume).path.parents[1]
            file = directory / RESULT
        if not rank():  # the others have no files
            print_json({"directory": str(directory.absolute()), **json.loads(file.read_text())})


@contextlib.contextmanager
def _ready(config: FitConfig) -> Iterator[None]:
    """Imports what a fit needs, and ends the process if the block goes on for too long after a signal."""
    with force_exit_after_signal(SECONDS_TO_END):
        with defer_signals():
            for module in _NEEDED_TO_COMPARE if config.mode == "compare" else _NEEDED:
                importlib.import_module(module)
        yield


def _check(config: FitConfig, output: Stdout) -> None:
    from kdtrain.experiment.dry_run import try_out

    began = time.perf_counter()
    for network in try_out(config):
        output.text(network.name)
        rows = {
            "network": f"{short_name(network.arch)}, {network.parameters:,} parameters",
            "first losses": ", ".join(f"{name} {loss:.4f}" for name, loss in network.losses.items()),
            "callbacks": ", ".join(network.callbacks),
        }
        for name, value in rows.items():
            output.text(fill(value, 80, initial_indent=f"  {name:<14}", subsequent_indent=" " * 16))
    seconds = time.perf_counter() - began
    output.sentence(
        f"Each was trained on two batches and evaluated, with every callback, in {seconds:.1f} s. "
        "No file remains."
    )


def _single(config: FitConfig, resume: Path | None, output: Stdout) -> None:
    from kdtrain.experiment.student import run_fit

    model = run_fit(config, resume)
    test, best = model.test, model.best_epoch
    rows = {
        "test accuracy": f"{test.accuracy:.2%} ({test.errors:,} errors in {test.images:,})",
        "cross-entropy": f"{test.cross_entropy:.4f}",
        "parameters": f"{model.parameters:,}",
        "training time": f"{model.seconds:.1f} s",
        **({} if best is None else {"best epoch": f"{best} of {model.history[-1]['epoch']}"}),
        "best weights": model.path,
    }
    for name, value in rows.items():
        output.text(f"{name:<13}  {value}")
    for warning in model.warnings:
        output.sentence(warning)
    after_fit(output, config, model.path)


def _compare(config: FitConfig, resume: Path | None, output: Stdout) -> None:
    from kdtrain.experiment.compare import run_compare
    from kdtrain.report.comparison_table import comparison_tables

    result = run_compare(config, resume)
    verdict, *others = result.sentences
    output.sentence(verdict)
    output.print()
    for table in comparison_tables(result.comparison):
        output.print(table, "")
    for sentence in others:
        output.sentence(sentence)
    output.text(f"Picture: {result.picture}")
    output.text(f"Report: {result.report}")
    output.text(f"Figures: {result.figures}")
    after_comparison(output, config, result.checkpoint("student_kd"))
