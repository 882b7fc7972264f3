"""Run directories: LOGDIR/MODE/version_N, each claimed by one run only."""

from __future__ import annotations

import itertools
from pathlib import Path

from kdtrain.errors import KdtrainError


def claim_run_directory(logdir: Path, mode: str) -> Path:
    """Makes and returns the first ``version_N`` that is not there yet.

    ``mkdir`` decides, so two runs that start at the same moment get different ones.

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
