"""Interrupts and doubles runs: what a user does to them who kills nothing."""

from __future__ import annotations

import itertools
import json
import random
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

Fault = Callable[[str, Path, float], None]

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
        self.chance = random.Random(seed)
        self.outcome = Outcome()
        self.slowest: dict[str, float] = {}

    def interrupt(self, times: int) -> None:
        """SIGINT or SIGTERM at a random moment."""
        signals = [self.chance.choice([signal.SIGINT, signal.SIGTERM]) for _ in range(times)]
        number = itertools.count()
        self._repeat(
            lambda name, folder, moment: self._interrupt(name, folder, moment, signals[next(number)]),
            times,
            _INTERRUPTED,
        )

    def double(self, times: int) -> None:
        """Two fits that start at the same moment in the same folder."""
        self._repeat(self._double, times, _DOUBLED)

    def _repeat(self, fault: Fault, times: int, names: Sequence[str]) -> None:
        work = list(zip(range(times), itertools.cycle(names), strict=False))
        moments = [self.chance.random() for _ in work]
        for _, name in work:
            self.laboratory.undisturbed(name)

        def once(number: int, name: str) -> None:
            moment = moments[number]
            folder = self.laboratory.new_folder(f"{name}, {fault.__name__} {number}", COMBINATIONS[name])
            self.outcome.tries += 1
            try:
                fault(name, folder, moment)
            except Exception:
                where = f"{name}, in {folder}, at {moment:.3f} of its time"
                self.outcome.losses.append(f"{where}:\n{traceback.format_exc()}")

        with ThreadPoolExecutor(LANES) as pool:
            list(pool.map(lambda item: once(*item), work))

    def _interrupt(self, name: str, folder: Path, moment: float, number: signal.Signals) -> None:
        combination, reference = COMBINATIONS[name], self.laboratory.undisturbed(name)
        process = self.laboratory.start(folder, combination)
        time.sleep(moment * reference.seconds)
        begun = any(folder.rglob("checkpoints"))
        began = time.monotonic()
        process.send_signal(number)
        ended = process.wait(timeout=30)
        seconds = time.monotonic() - began
        if ended == 0:
            return  # it came too late
        self.outcome.done[number.name] += 1
        self.slowest[number.name] = max(seconds, self.slowest.get(number.name, 0.0))
        patience = max(_SECONDS_TO_END, reference.seconds)  # a busy machine takes longer for everything
        assert seconds < patience, f"{number.name} took {seconds:.1f} s"
        results = [json.loads(file.read_text()) for file in folder.rglob("result.json") if begun]
        status = {result["status"] for result in results}
        if ended == -number:  # Python did not listen yet, or not any more
            assert status <= {"completed", "stopped"}, status
            return
        assert ended == {signal.SIGINT: 130, signal.SIGTERM: 143}[number], f"exit code {ended}"
        if begun:
            said = (folder / "stderr").read_text().splitlines()[-1]
            assert status <= {"interrupted", "completed", "stopped"}, status
            assert f"kdtrain fit --resume {self.laboratory.run_of(combination)}" in said, said
            for file in folder.rglob("events.*"):
                assert all(True for _ in RawEventFileLoader(str(file)).Load())
        self.laboratory.finish(folder, combination, reference)

    def _double(self, name: str, folder: Path, moment: float) -> None:
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
