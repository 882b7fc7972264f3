"""Run directories: LOGDIR/MODE/version_N or LOGDIR/MODE/NAME, each for one run only."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import shlex
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from kdtrain.errors import KdtrainError, UsageError, os_reason
from kdtrain.runtime.locations import missing_path_text

_PROBE_SECONDS = 0.05


@contextlib.contextmanager
def run_directory(
    logdir: Path, mode: str, resume: Path | None = None, name: str | None = None, command: str = "fit"
) -> Iterator[Path]:
    """Yields the directory for a run's files: a new one, or that of the run that is resumed.

    ``is_active`` is true of it meanwhile. An interruption gets the command that resumes the run as its
    text. A new directory is removed if the settings are refused: it would be taken for the mode's latest run.

    Args:
        logdir: the folder of all runs.
        mode: the mode of the run.
        resume: the directory of the run to resume; None for a new one.
        name: the name of a new run; the next version by default.
        command: the command of kdtrain that resumes it.

    Raises:
        KdtrainError: the directory cannot be made.
        UsageError: a run has this name already.
    """
    directory = resume or claim_run_directory(logdir, mode, name)
    try:
        with _marked_as_active(directory):
            yield directory
    except KeyboardInterrupt as error:
        error.args = (f"Go on with: kdtrain {command} --resume {shlex.quote(str(directory.absolute()))}",)
        raise
    except KdtrainError as error:
        refused = error.exit_code == UsageError.exit_code  # a callback's comes as a CallbackError
        if refused and resume is None and not any(directory.rglob("metrics.jsonl")):
            shutil.rmtree(directory, ignore_errors=True)
        raise


def is_active(directory: Path) -> bool:
    """Returns whether a process works on a run: False after its end, however it has ended.

    False where the file system has no locks.
    """
    with _opened(directory) as descriptor:
        return descriptor is not None and not _locks(descriptor, fcntl.LOCK_EX)


@contextlib.contextmanager
def _marked_as_active(directory: Path) -> Iterator[None]:
    """Holds a lock on a run directory, which ``is_active`` finds; forked processes hold it, too.

    The lock is shared, because each rank of a fit holds it. The system releases it when the processes end.
    """
    with _opened(directory) as descriptor:
        if descriptor is not None and not _locks(descriptor, fcntl.LOCK_SH):
            time.sleep(_PROBE_SECONDS)  # ``is_active`` has the lock for less than that
            _locks(descriptor, fcntl.LOCK_SH)
        yield


@contextlib.contextmanager
def _opened(directory: Path) -> Iterator[int | None]:
    """Yields a descriptor of a directory; None if it cannot be opened."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _locks(descriptor: int, kind: int) -> bool:
    """Locks an open directory, without waiting; returns False if another process has locked it."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # the file system has no locks
        pass
    return True


def latest_run(logdir: Path, mode: str) -> Path:
    """Returns the mode's latest run directory.

    It is the version with the highest number, or a run with a name that was begun or resumed after it.

    Raises:
        UsageError: there is no run.
    """
    folder = logdir / mode
    number = _highest(folder)
    runs = [path.parent for path in folder.glob("*/config.toml") if _number(path.parent) is None]
    if number >= 0:
        runs.append(folder / f"version_{number}")
    if not runs:
        raise UsageError(f"--resume: there is no run in {missing_path_text(folder)} yet.")
    return max(runs, key=_begun)


def check_name(logdir: Path, mode: str, name: str) -> None:
    """Checks that no run of the mode has a name yet.

    Raises:
        UsageError: one has.
    """
    if os.path.lexists(logdir / mode / name):
        raise _taken(logdir / mode / name)


def claim_run_directory(logdir: Path, mode: str, name: str | None = None) -> Path:
    """Makes and returns the directory of a new run: that of its name, or ``version_N`` with the next number.

    ``mkdir`` is atomic, so two runs that start at the same moment get different directories.

    Raises:
        KdtrainError: the directory cannot be made.
        UsageError: a run has this name already.
    """
    folder = logdir / mode
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if name is not None:
            return _claim_name(folder / name)
        for number in itertools.count(_highest(folder) + 1):
            try:
                (folder / f"version_{number}").mkdir()
            except FileExistsError:
                continue
            return folder / f"version_{number}"
    except OSError as error:
        raise KdtrainError(f"cannot make a run directory in {folder}: {os_reason(error)}.") from error
    raise AssertionError("unreachable: there is always a next number")


def _claim_name(directory: Path) -> Path:
    try:
        directory.mkdir()
    except FileExistsError:
        raise _taken(directory) from None
    return directory


def _taken(directory: Path) -> UsageError:
    return UsageError(
        f"--name {directory.name}: {directory} exists already. Give another name, or go on with that run: "
        f"--resume {shlex.quote(str(directory))}"
    )


def _highest(folder: Path) -> int:
    numbers = [number for path in folder.glob("version_*") if (number := _number(path)) is not None]
    return max(numbers, default=-1)


def _number(directory: Path) -> int | None:
    """Returns the number of a directory ``version_N``; None for another name."""
    prefix, _, number = directory.name.partition("version_")
    return int(number) if not prefix and number.isdecimal() else None


def _begun(directory: Path) -> float:
    """Returns when a run was begun or resumed last: its configuration is written then."""
    for path in (directory / "config.toml", directory):
        with contextlib.suppress(OSError):
            return path.stat().st_mtime
    return 0.0
