"""Repeated SIGKILLs of a combination's runs, and the comparison with an undisturbed run."""

from __future__ import annotations

import itertools
import random
import shutil
import subprocess
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.faults.combinations import COMBINATIONS
from tests.faults.laboratory import Laboratory, Reference, check_checkpoints
from tests.faults.processes import kill, wait_for_session

_KINDS = ("rename", "file", "time")
_WHOM = ("all", "all", "command", "child")
_MOST_KILLS = 3  # of one run
_MOST_VAIN = 5  # runs in a row that ended before they could be killed


@dataclass
class Outcome:
    """What was done to runs and found in them.

    Attributes:
        done: how many faults, by kind.
        tries: how many runs were disturbed.
        losses: what was lost, a text for each run.
    """

    done: Counter[str] = field(default_factory=Counter)
    tries: int = 0
    losses: list[str] = field(default_factory=list)


def kill_often(laboratory: Laboratory, name: str, kills: int, seed: int) -> Outcome:
    """Kills a combination's runs at least so often.

    In turn, a kill comes between the writing of a file and its renaming, when one of the run's files appears
    or changes, so that short phases between long ones have their share, and at a moment drawn from the run's
    whole length.
    """
    outcome, chance, kinds = Outcome(), random.Random(f"{seed} {name}"), itertools.cycle(_KINDS)
    reference = laboratory.undisturbed(name)
    vain = 0
    while outcome.done.total() < kills and vain < _MOST_VAIN and not outcome.losses:
        folder = laboratory.new_folder(f"{name}, {outcome.tries}", COMBINATIONS[name])
        before = outcome.done.total()
        planned = min(chance.randint(1, _MOST_KILLS), kills - before)
        moments = []
        try:
            for _ in range(planned):
                moments.append(_Moment.draw(next(kinds), chance, reference))
                killed = _kill_once(laboratory, name, folder, moments[-1])
                outcome.done.update([killed] if killed else [])
            laboratory.finish(folder, COMBINATIONS[name], reference)
        except Exception:
            told = "\n".join(str(moment) for moment in moments)
            outcome.losses.append(f"{name}, in {folder}, killed at:\n{told}\n{traceback.format_exc()}")
        else:
            shutil.rmtree(folder)
        outcome.tries += 1
        vain = 0 if outcome.done.total() > before else vain + 1
    if not outcome.done:
        outcome.losses.append(f"{name}: no run of it could be killed")
    return outcome


@dataclass(frozen=True)
class _Moment:
    """When to kill: after some seconds, when ``file`` is new, or before the renaming number ``kill_at``.

    With a file, the seconds are those to wait from then on.
    """

    seconds: float
    whom: str
    file: Path | None = None
    kill_at: int = 0

    @classmethod
    def draw(cls, kind: str, chance: random.Random, reference: Reference) -> _Moment:
        """Returns a moment of one of ``_KINDS`` in a run like the reference."""
        whom = chance.choice(_WHOM)
        if kind == "rename":
            return cls(0.0, "all", kill_at=chance.randint(1, reference.renames))
        if kind == "file":
            return cls(chance.random() * 0.1, whom, chance.choice(reference.files))
        return cls(chance.random() * reference.seconds, whom)

    def wait(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        """Waits for the moment, or for the end of the process."""
        file = folder / self.file if self.file is not None else None
        before = _change_of(file)
        while file is not None and _change_of(file) == before and process.poll() is None:
            time.sleep(0.002)
        deadline = time.monotonic() + self.seconds
        while process.poll() is None and (self.kill_at or time.monotonic() < deadline):
            time.sleep(0.002)


def _kill_once(laboratory: Laboratory, name: str, folder: Path, moment: _Moment) -> str | None:
    """Starts a run or goes on with it, and kills it; returns how, or None if it ended before."""
    process = laboratory.start(folder, COMBINATIONS[name], moment.kill_at)
    moment.wait(folder, process)
    ended = process.poll() is not None
    if not ended:
        kill(process, moment.whom)
    code = process.wait(timeout=60)
    wait_for_session(process.pid)
    check_checkpoints(folder)
    if code == 0:
        return None
    if moment.kill_at:
        assert code == -9, f"it ended by itself with exit code {code}: {(folder / 'stderr').read_text()}"
        return "SIGKILL between write and rename"
    assert not ended, f"it ended by itself with exit code {code}: {(folder / 'stderr').read_text()}"
    return f"SIGKILL, {moment.whom}"


def _change_of(file: Path | None) -> tuple[int, int] | None:
    try:
        status = file.stat() if file is not None else None
    except OSError:
        return None
    return (status.st_ino, status.st_mtime_ns) if status is not None else None
