"""Disturbances of runs: repeated SIGKILLs, interrupts, and two fits at once."""

from __future__ import annotations

import itertools
import json
import random
import shlex
import shutil
import signal
import subprocess
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from tests.faults.combinations import COMBINATIONS
from tests.faults.laboratory import LANES, Laboratory, Reference, check_checkpoints, kill, wait_for_session
from tests.runs import assert_same_files, assert_same_run

Fault = Callable[[str, Path, random.Random], None]

_INTERRUPTED = (
    *("student: early stopping, shift", "student_kd: own teacher", "compare: label smoothing"),
    "teacher: sgd, cosine",
)
_DOUBLED = ("student: early stopping, shift", "student_kd: given teacher", "teacher: sgd, cosine")
_SECONDS_TO_END = 5.0
_MOST_VAIN = 5  # runs in a row that ended before they could be killed or interrupted


class Disturbances:
    """Injects faults into a few combinations, and keeps what was done and lost.

    Attributes:
        outcome: of all of them.
        slowest: the longest time in seconds that a run took to end, by signal.
    """

    def __init__(self, laboratory: Laboratory, seed: int) -> None:
        self.laboratory = laboratory
        self.seed = seed
        self.outcome = Outcome()
        self.slowest: dict[str, float] = {}

    def interrupt(self, times: int) -> None:
        """SIGINT or SIGTERM at a random moment, sent again to a new run where the run had ended before."""
        self._repeat("interrupted", self._interrupt, times, _INTERRUPTED)

    def double(self, times: int) -> None:
        """Two fits that start at the same moment in the same folder."""
        self._repeat("doubled", self._double, times, _DOUBLED)

    def _repeat(self, what: str, fault: Fault, times: int, names: Sequence[str]) -> None:
        work = [
            (f"{name}, {what}, {number}", name) for number, name in zip(range(times), itertools.cycle(names))
        ]
        for _, name in work:
            self.laboratory.undisturbed(name)

        def once(title: str, name: str) -> None:
            folder = self.laboratory.new_folder(title, COMBINATIONS[name])
            self.outcome.tries += 1
            try:
                fault(name, folder, random.Random(f"{self.seed} {title}"))
            except Exception:
                self.outcome.losses.append(f"{title}, in {folder}:\n{traceback.format_exc()}")

        with ThreadPoolExecutor(LANES) as pool:
            list(pool.map(lambda item: once(*item), work))

    def _interrupt(self, name: str, folder: Path, chance: random.Random) -> None:
        again = (
            self.laboratory.new_folder(f"{folder.name}, again {number}", COMBINATIONS[name])
            for number in range(1, _MOST_VAIN)
        )
        for place in itertools.chain([folder], again):
            if self._interrupted(name, place, chance):
                return
        raise AssertionError(f"{name}: {_MOST_VAIN} runs ended before they could be interrupted")

    def _interrupted(self, name: str, folder: Path, chance: random.Random) -> bool:
        """Interrupts a run and finishes it; returns False if it ended before."""
        combination, reference = COMBINATIONS[name], self.laboratory.undisturbed(name)
        number, moment = chance.choice([signal.SIGINT, signal.SIGTERM]), chance.random()
        process = self.laboratory.start(folder, combination)
        time.sleep(moment * reference.seconds)
        begun = any(folder.rglob("checkpoints"))
        began = time.monotonic()
        process.send_signal(number)
        ended = process.wait(timeout=30)
        seconds = time.monotonic() - began
        if ended == 0:
            return False
        self.outcome.done[number.name] += 1
        self.slowest[number.name] = max(seconds, self.slowest.get(number.name, 0.0))
        assert seconds < _SECONDS_TO_END, f"{number.name} took {seconds:.1f} s"
        results = [json.loads(file.read_text()) for file in folder.rglob("result.json") if begun]
        status = {result["status"] for result in results}
        if ended == -number:  # before Python sets its handlers, or after it removes them
            assert status <= {"completed", "stopped"}, status
            return True
        assert ended == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], f"exit code {ended}"
        if begun:
            said = (folder / "stderr").read_text().splitlines()[-1]
            assert status <= {"interrupted", "completed", "stopped"}, status
            assert shlex.quote(str(folder / self.laboratory.run_of(combination))) in said, said
            for file in folder.rglob("events.*"):
                assert all(True for _ in RawEventFileLoader(str(file)).Load())
        self.laboratory.finish(folder, combination, reference)
        return True

    def _double(self, name: str, folder: Path, chance: random.Random) -> None:
        combination, reference = COMBINATIONS[name], self.laboratory.undisturbed(name)
        processes: list[subprocess.Popen[bytes]] = [
            self.laboratory.start(folder, combination, anew=True) for _ in range(2)
        ]
        assert [process.wait(300) for process in processes] == [0, 0], (folder / "stderr").read_text()
        self.outcome.done["two fits at once"] += 1
        run = self.laboratory.run_of(combination)
        runs = sorted((folder / run.parent).iterdir())
        assert [path.name for path in runs] == ["version_0", "version_1"]
        for path in runs:
            assert_same_run(path, reference.folder / run)
        assert_same_files(folder / "logs/models", reference.folder / "logs/models")


_KINDS = ("rename", "file", "time")
_WHOM = ("all", "all", "command", "child")
_MOST_KILLS = 3  # of one run


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
