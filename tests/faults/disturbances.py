"""Disturbances of runs without SIGKILL: interrupts, and two fits at once."""

from __future__ import annotations

import itertools
import json
import random
import shlex
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from tests.faults.combinations import COMBINATIONS
from tests.faults.kills import Outcome
from tests.faults.laboratory import Laboratory
from tests.faults.processes import LANES
from tests.runs import assert_same_files, assert_same_run

Fault = Callable[[str, Path, random.Random], None]

_INTERRUPTED = (
    "student: early stopping, shift",
    "student_kd: own teacher",
    "compare: label smoothing",
    "teacher: sgd, cosine",
)
_DOUBLED = ("student: early stopping, shift", "student_kd: given teacher", "teacher: sgd, cosine")
_SECONDS_TO_END = 5.0


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
        """SIGINT or SIGTERM at a random moment."""
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
            return  # the run had ended
        self.outcome.done[number.name] += 1
        self.slowest[number.name] = max(seconds, self.slowest.get(number.name, 0.0))
        assert seconds < _SECONDS_TO_END, f"{number.name} took {seconds:.1f} s"
        results = [json.loads(file.read_text()) for file in folder.rglob("result.json") if begun]
        status = {result["status"] for result in results}
        if ended == -number:  # before Python sets its handlers, or after it removes them
            assert status <= {"completed", "stopped"}, status
            return
        assert ended == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], f"exit code {ended}"
        if begun:
            said = (folder / "stderr").read_text().splitlines()[-1]
            assert status <= {"interrupted", "completed", "stopped"}, status
            assert shlex.quote(str(folder / self.laboratory.run_of(combination))) in said, said
            for file in folder.rglob("events.*"):
                assert all(True for _ in RawEventFileLoader(str(file)).Load())
        self.laboratory.finish(folder, combination, reference)

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
