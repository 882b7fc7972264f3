"""The runs in a log directory: their list, and the best of each data set. No model is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtrain.errors import UsageError, unknown_name_message
from kdtrain.experiment.history.run import RUN_FOLDERS, RunInfo, is_run, read_run
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.runtime.locations import missing_path_text, short_name
from kdtrain.store.record import SINGLE_MODES

_NOT_RUNS = {"cache", "models", "images"}  # folders of the log directory


def _highest(value: float | None) -> tuple[bool, float]:
    return value is None, -(value or 0.0)


def _by_name(value: str | None) -> tuple[bool, tuple[tuple[int, str], ...]]:
    """Orders names with the numbers in them by value: version_9 comes before version_10."""
    words: list[tuple[int, str]] = []
    for is_digit, letters in _runs_of_digits(value or ""):
        words.append((int(letters[:18]), "") if is_digit else (-1, letters.lower()))
    return value is None, tuple(words)


def _runs_of_digits(text: str) -> Iterable[tuple[bool, str]]:
    start = 0
    for end in range(1, len(text) + 1):
        if end == len(text) or _is_digit(text[end]) != _is_digit(text[start]):
            yield _is_digit(text[start]), text[start:end]
            start = end


def _is_digit(letter: str) -> bool:
    return "0" <= letter <= "9"


SORTS: dict[str, Callable[[RunInfo], Any]] = {
    "changed": lambda run: _highest(run.changed),
    "run": lambda run: _by_name(run.run),
    "mode": lambda run: _by_name(run.mode),
    "data": lambda run: _by_name(run.dataset),
    "recipe": lambda run: _by_name(run.recipe),
    "status": lambda run: _by_name(run.status),
    "held-out": lambda run: _highest(run.held_out_accuracy),
    "test": lambda run: _highest(run.test_accuracy),
    "gain": lambda run: _highest(run.gain.points if run.gain else None),
}
"""The orders of a list: figures and times from the highest, names from the first; missing values last."""


def list_runs(
    logdir: Path | str = FitConfig.logdir, *, sort: str = "changed", parts: bool = False
) -> list[RunInfo]:
    """Returns the runs in a log directory, as ``kdtrain runs`` lists them.

    A run whose files are damaged is listed with the status ``damaged``, and is no error.

    Args:
        logdir: the log directory.
        sort: changed (the newest first), run, mode, data, recipe, status, held-out, test or gain.
        parts: read the runs inside of comparisons and searches, too.

    Raises:
        UsageError: there is no such folder, or no such order.
    """
    if sort not in SORTS:
        raise UsageError(f"--sort: {unknown_name_message('column', sort, SORTS)}")
    root = Path(logdir)
    runs = [read_run(directory, root, parts=parts) for directory in run_directories(root)]
    runs.sort(key=lambda run: _by_name(run.run))
    return sorted(runs, key=SORTS[sort])


def run_directories(root: Path) -> list[Path]:
    """Returns the run directories in a log directory: all in MODE, and others that hold the files of a run.

    Raises:
        UsageError: there is no such folder.
    """
    try:
        groups = [root / name for name in _folders(root) if name not in _NOT_RUNS]
    except OSError as error:
        place = missing_path_text(root)
        raise UsageError(f"--logdir {place}: {error.strerror or error}.") from error
    directories = []
    for group in groups:
        if is_run(group):
            directories.append(group)
            continue
        try:
            names = _folders(group)
        except OSError:  # such as a folder that its owner alone may read
            continue
        directories += [group / name for name in names if group.name in RUN_FOLDERS or is_run(group / name)]
    return directories


def _folders(root: Path) -> list[str]:
    with os.scandir(root) as entries:
        return [entry.name for entry in entries if entry.is_dir()]


@dataclass(frozen=True)
class BestRun:
    """The best run of a network and a mode on a data set, by held-out accuracy.

    Attributes:
        dataset: the data set.
        arch: the network.
        model: the mode, or the model's name in a comparison, such as student_ls.
        run: the run with the highest held-out accuracy; its test figures had no part in the choice.
        path: its path within the log directory.
        of: number of finished runs that it was chosen from.
    """

    dataset: str
    arch: str
    model: str
    run: RunInfo
    path: str
    of: int


def best_runs(logdir: Path | str = FitConfig.logdir) -> list[BestRun]:
    """Returns the best run of each network and mode, data set by data set, as ``kdtrain runs --best`` does.

    The held-out accuracy chooses. Runs of ``val_size`` 0 have none, and take no part; nor do runs that are
    not finished or not tested.

    Args:
        logdir: the log directory.

    Raises:
        UsageError: there is no such folder.
    """
    root = Path(logdir)
    kinds: dict[tuple[str, str, str, str, str], list[RunInfo]] = {}
    for run in _fits(list_runs(root, parts=True)):
        if run.dataset and run.arch and run.model:
            kinds.setdefault(
                (run.dataset, run.data_dir or "", run.labels or "", run.arch, run.model), []
            ).append(run)
    rows = []
    for (dataset, folder, labels, arch, model), runs in kinds.items():
        best = min(runs, key=SORTS["held-out"])
        data = f"{dataset} in {folder}" if folder else dataset
        data += f", {labels} labels" if labels else ""
        path = os.path.relpath(best.directory, root)
        rows.append(BestRun(data, arch, model, best, path, len(runs)))
    return sorted(rows, key=lambda row: (_by_name(row.dataset), SORTS["held-out"](row.run)))


def _fits(runs: Iterable[RunInfo]) -> Iterable[RunInfo]:
    """Yields each finished and tested fit of one network, among runs and their parts."""
    for run in runs:
        complete = run.status == "finished" and None not in (run.held_out_accuracy, run.test_accuracy)
        if complete and run.mode in SINGLE_MODES:
            yield run
        yield from _fits(run.parts)


def data_text(run: RunInfo) -> str:
    """Returns a run's data set for a table, without folders."""
    name = short_name(run.dataset or "")
    details = [Path(run.data_dir).name] if run.data_dir else []
    details += [f"{run.labels} labels"] if run.labels else []
    return f"{name} ({', '.join(details)})" if details else name
