"""Run directories: LOGDIR/MODE/version_N, each for one run only."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

from kdtrain.errors import KdtrainError, UsageError
from kdtrain.runtime.locations import missing_path_text


@contextlib.contextmanager
def run_directory(
    logdir: Path, mode: str, resume: Path | None = None, command: str = "fit"
) -> Iterator[Path]:
    """Yields the directory for a run's files: a new one, or that of the run that is resumed.

    An interruption gets the command that resumes the run as its text. A new directory is removed if
    the settings are refused: it would be taken for the mode's latest run.

    Args:
        logdir: the folder of all runs.
        mode: the mode of the run.
        resume: the directory of the run to resume; None for a new one.
        command: the command of kdtrain that resumes it.

    Raises:
        KdtrainError: the directory cannot be made.
    """
    directory = resume or claim_run_directory(logdir, mode)
    try:
        yield directory
    except KeyboardInterrupt as error:
        error.args = (f"Go on with: kdtrain {command} --resume {shlex.quote(str(directory.absolute()))}",)
        raise
    except KdtrainError as error:
        refused = error.exit_code == UsageError.exit_code  # a callback's comes as a CallbackError
        if refused and resume is None and not any(directory.rglob("metrics.jsonl")):
            shutil.rmtree(directory, ignore_errors=True)
        raise


def latest_run(logdir: Path, mode: str) -> Path:
    """Returns the mode's latest run directory.

    Raises:
        UsageError: there is no run.
    """
    folder = logdir / mode
    number = _highest(folder)
    if number < 0:
        raise UsageError(f"--resume: there is no run in {missing_path_text(folder)} yet.")
    return folder / f"version_{number}"


def claim_run_directory(logdir: Path, mode: str) -> Path:
    """Makes and returns the directory ``version_N`` with the next free number.

    ``mkdir`` is atomic, so two runs that start at the same moment get different directories.

    Raises:
        KdtrainError: the directory cannot be made.
    """
    folder = logdir / mode
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(_highest(folder) + 1):
            try:
                (folder / f"version_{number}").mkdir()
            except FileExistsError:
                continue
            return folder / f"version_{number}"
    except OSError as error:
        raise KdtrainError(f"cannot make a run directory in {folder}: {error.strerror or error}.") from error
    raise AssertionError("unreachable: there is always a next number")


def _highest(folder: Path) -> int:
    numbers = [path.name.removeprefix("version_") for path in folder.glob("version_*")]
    return max((int(number) for number in numbers if number.isdecimal()), default=-1)
