"""The command ``kdtrain runs``: the runs in the log directory, and the best of each data set."""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

from rich.text import Text

from kdtrain.cli.flags import add_setting_flag, choice, json_flag
from kdtrain.cli.output import Stdout
from kdtrain.experiment.history.run import Gain, RunInfo
from kdtrain.experiment.history.runs import SORTS, BestRun, best_runs, data_text, list_runs
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.report.table import Column, Table
from kdtrain.runtime.locations import short_name

_GAIN = "A comparison's figures are means of the distilled student; gain ± half of the 95 % interval."
_MOST_REASONS = 10
_COLOURS = {"running": "cyan", "interrupted": "yellow", "failed": "red", "damaged": "red"}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.description = (
        "List the runs in the log directory with status and figures, the newest first. A comparison is one "
        "row: its figures are those of the distilled student, and its gain is over the plain student."
    )
    add_setting_flag(parser, "logdir", default=FitConfig.logdir, help="folder of the runs [logs]")
    order = parser.add_mutually_exclusive_group()
    order.add_argument(
        "--sort",
        **choice(*SORTS) | {"metavar": "COLUMN"},
        default="changed",
        help=f"column to sort by: {', '.join(SORTS)}; figures and times from the highest, names from the "
        "first [changed]",
    )
    order.add_argument(
        "--best",
        action="store_true",
        help="list the best run of each network and mode, data set by data set; held-out figures choose it",
    )
    parser.add_argument(
        "--parts", action="store_true", help="also list the runs inside of comparisons and searches, indented"
    )
    json_flag(parser, "a JSON list")


def run(options: argparse.Namespace) -> int:
    """Lists the runs in the log directory, or the best of each data set."""
    output = Stdout()
    if options.best:
        best = best_runs(options.logdir)
        if options.json:
            print(json.dumps([_best_entry(row) for row in best], indent=2))
        elif best:
            output.print(_best_table(best))
        else:
            output.text(f"{options.logdir} holds no finished run with held-out and test figures.")
        return 0
    runs = list_runs(options.logdir, sort=options.sort, parts=options.parts)
    if options.json:
        print(json.dumps([_entry(listed, parts=options.parts) for listed in runs], indent=2))
    elif runs:
        output.print(_table(runs))
        _print_reasons(output, runs)
    else:
        output.text(f"{options.logdir} holds no run yet. The first one: kdtrain fit")
    return 0


def _table(runs: Sequence[RunInfo]) -> Table:
    table = Table(
        Column("run", words=True),
        Column("mode", words=True, drop=1),
        Column("data", words=True, drop=5),
        Column("recipe", words=True, drop=3),
        Column("status", words=True),
        Column("held-out\n%", drop=7),
        Column("test\n%"),
        Column("gain\npoints", drop=6, note=_GAIN if any(listed.gain for listed in runs) else ""),
        Column("changed", drop=2),
    )
    for listed in runs:
        table.row(*_cells(listed, listed.run))
        for part in listed.parts:
            table.row(*_cells(part, f"  {part.run}"))
    return table


def _cells(listed: RunInfo, run: str) -> list[str | Text]:
    return [
        run,
        listed.mode or "",
        data_text(listed),
        listed.recipe or "",
        Text(listed.status, _COLOURS.get(listed.status, "")),
        _percent(listed.held_out_accuracy),
        _percent(listed.test_accuracy),
        _gain_text(listed.gain),
        time.strftime("%Y-%m-%d %H:%M", time.localtime(listed.changed)) if listed.changed else "",
    ]


def _percent(fraction: float | None) -> str:
    return "" if fraction is None else f"{100 * fraction:.2f}"


def _gain_text(gain: Gain | None) -> str:
    if gain is None:
        return ""
    half = "" if gain.low is None or gain.high is None else f" ± {(gain.high - gain.low) / 2:.2f}"
    return f"{gain.points:+.2f}{half}"


def _print_reasons(output: Stdout, runs: Iterable[RunInfo]) -> None:
    """Prints a line for each run that is not finished and whose files say why, for the first few."""
    unfinished = [listed for listed in runs if listed.status != "finished" and listed.reason]
    for listed in unfinished[:_MOST_REASONS]:
        output.sentence(f"{listed.run} ({listed.status}): {listed.reason}")
    if len(unfinished) > _MOST_REASONS:
        output.sentence(f"{len(unfinished) - _MOST_REASONS} more are not finished; --json has their reasons.")


def _best_table(rows: Sequence[BestRun]) -> Table:
    table = Table(
        Column("network", words=True),
        Column("trained as", words=True),
        Column("held-out\n%"),
        Column("test\n%"),
        Column("errors", drop=3),
        Column("parameters", drop=2),
        Column("best of\nruns", drop=1),
        Column("run", words=True, drop=4),
        title="Best runs by held-out accuracy",
        caption="The held-out figures choose the run; the test figures have no part in the choice.",
    )
    for dataset, of_data in groupby(rows, key=lambda row: row.dataset):
        table.section(short_name(dataset))
        for row in of_data:
            best = row.run
            table.row(
                short_name(row.arch),
                row.model,
                _percent(best.held_out_accuracy),
                _percent(best.test_accuracy),
                "" if best.test_errors is None else f"{best.test_errors:,}",
                "" if best.parameters is None else f"{best.parameters:,}",
                f"{row.of:,}",
                row.path,
            )
    return table


def _entry(listed: RunInfo, *, parts: bool) -> dict[str, Any]:
    """Returns plain values for ``--json``; docs/sharing.md explains them."""
    values = {field.name: getattr(listed, field.name) for field in dataclasses.fields(listed)}
    gain: Gain | None = values.pop("gain")
    inside: tuple[RunInfo, ...] = values.pop("parts")
    values["directory"] = str(listed.directory.absolute())
    values["changed"] = _utc(listed.changed)
    values["gain"] = gain and dataclasses.asdict(gain)
    return values | ({"parts": [_entry(part, parts=parts) for part in inside]} if parts else {})


def _best_entry(row: BestRun) -> dict[str, Any]:
    own = {"dataset": row.dataset, "arch": row.arch, "model": row.model, "path": row.path, "of": row.of}
    return own | {"run": _entry(row.run, parts=False)}


def _utc(seconds: float) -> str | None:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)) if seconds else None
