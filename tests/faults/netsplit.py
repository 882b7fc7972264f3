"""Trials of two machines that train together: cut cables, stopped and killed processes, Ctrl-C.

``scripts/netsplit`` runs it, as root; it ends with 1 if a promise was broken.
"""

from __future__ import annotations

import json
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kdtrain.data.datasets import load_dataset
from tests.faults.machines import ADDRESSES, Fit, Machines, obstacle
from tests.runs import assert_same_run
from tests.tools import write_tiles

RUN = Path("logs/student/version_0")
LONGEST = 60.0  # seconds that a side may take to end
FLAGS = ("--mode", "student", "--val-size", "300", "--optimizer", "sgd", "--lr", "0.05", "--batch-size", "32")
SLOWLY = ("--recipe=none", "--epochs", "15", "--plugin", "slow.py:Slow,seconds=0.05")

Fault = Callable[[Machines, list[Fit], int], None]


def cut_for_30_seconds(machines: Machines, fits: list[Fit], victim: int) -> None:
    machines.cut(victim)
    time.sleep(30)
    machines.cut(victim, cut=False)


def cut_and_press_ctrl_c(machines: Machines, fits: list[Fit], victim: int) -> None:
    machines.cut(victim)
    time.sleep(5)
    fits[victim].signal(signal.SIGINT, "group")


FAULTS: dict[str, Fault] = {
    "cut for 30 seconds": cut_for_30_seconds,
    "cut for good": lambda machines, fits, victim: machines.cut(victim),
    "stop the worker": lambda machines, fits, victim: fits[victim].signal(signal.SIGSTOP, "worker"),
    "stop all of it": lambda machines, fits, victim: fits[victim].signal(signal.SIGSTOP, "all"),
    "kill the worker": lambda machines, fits, victim: fits[victim].signal(signal.SIGKILL, "worker"),
    "kill all of it": lambda machines, fits, victim: fits[victim].signal(signal.SIGKILL, "all"),
    "press Ctrl-C": lambda machines, fits, victim: fits[victim].signal(signal.SIGINT, "group"),
    "cut and press Ctrl-C": cut_and_press_ctrl_c,
}


class Laboratory:
    """A folder with data, and an undisturbed run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tiles = write_tiles(folder / "tiles", load_dataset())
        with Machines() as machines:
            for fit in self._start(machines, folder / "undisturbed"):
                assert fit.wait(180) == 0, (fit.folder / "stderr").read_text()

    def trial(self, number: int, fault: str, victim: int) -> tuple[str, str]:
        """Injects a fault at one machine; returns a row of the table, and which promise was broken."""
        folder, broken = self.folder / f"{fault} {victim}".replace(" ", "_"), ""
        with Machines(number) as machines:
            fits = self._start(machines, folder)
            for fit in fits:
                fit.worker()
            time.sleep(3)  # so that there is a checkpoint
            FAULTS[fault](machines, fits, victim)
            began = time.monotonic()
            with ThreadPoolExecutor(2) as pool:
                ends = list(pool.map(lambda rank: _end(fits, rank, began, fault, victim), (0, 1)))
            result = fits[0].folder / RUN / "result.json"
            status = json.loads(result.read_text())["status"] if result.exists() else "none"
            if fault == "cut for 30 seconds":
                machines.cut(victim, cut=False)
            try:
                for rank, (seconds, code, said) in enumerate(ends):
                    if rank != victim or fault != "kill all of it":
                        _check(rank, seconds, code, said, fault, victim)
                        assert not list((fits[rank].folder / "tmp").iterdir()), "temporary files stayed"
            except AssertionError as error:
                broken = f"{fault}, {victim}: {error}"
        if not broken and fault != "cut for 30 seconds":
            broken = self._resume(number, folder)
        cells = [f"{seconds:.1f} s, {code}: {said or 'nothing'}" for seconds, code, said in ends]
        return (
            f"| {fault} | {victim} | {cells[0]} | {cells[1]} | {status} |",
            broken,
        )

    def _resume(self, number: int, folder: Path) -> str:
        """Lets both sides go on with the run directory, and compares; returns what differs."""
        again = folder / "again"
        for rank in (0, 1):
            shutil.copytree(folder / "0" / "logs", again / str(rank) / "logs")
        with Machines(number) as machines:
            codes = [fit.wait(180) for fit in self._start(machines, again, "--resume", RUN)]
        try:
            assert codes == [0, 0], (again / "0" / "stderr").read_text()
            assert_same_run(again / "0" / RUN, self.folder / "undisturbed" / "0" / RUN)
            assert not list((again / "0").rglob("*.tmp")), "temporary files stayed"
        except AssertionError as error:
            return f"{folder.name}, resumed: {error}"
        return ""

    def _start(self, machines: Machines, folder: Path, *words: str | Path) -> list[Fit]:
        words = words or (*FLAGS, *SLOWLY, "--data-dir", self.tiles)
        return [machines.start(rank, folder / str(rank), *words, launcher=True) for rank in (0, 1)]


def _end(fits: list[Fit], rank: int, began: float, fault: str, victim: int) -> tuple[float, int, str]:
    """Waits for one side; returns after how many seconds it has ended, its exit code and its last line."""
    if rank == victim and fault == "stop all of it":
        fits[1 - rank].wait(5 * LONGEST)
        began = time.monotonic()
        fits[rank].signal(signal.SIGCONT, "group")
        fits[rank].signal(signal.SIGCONT, "all")
    code = fits[rank].wait(5 * LONGEST)
    return time.monotonic() - began, code, (fits[rank].said or [""])[-1].removeprefix("kdtrain: ")


def _check(rank: int, seconds: float, code: int, said: str, fault: str, victim: int) -> None:
    peer = f"process {1 - rank} ({ADDRESSES[1 - rank]})"
    if fault == "cut for 30 seconds":
        assert (code, said) == (0, ""), f"process {rank} did not go on: {said}"
    elif rank == victim and fault in ("press Ctrl-C", "cut and press Ctrl-C"):
        assert "interrupted" in said, said
        assert seconds < 5, f"process {rank} took {seconds:.1f} s"
    elif rank == victim and fault == "kill the worker":
        assert f"process {rank} was ended by signal SIGKILL" in said, said
    else:
        assert peer in said, f"process {rank} does not name its peer: {said}"
        assert seconds < LONGEST, f"process {rank} took {seconds:.1f} s"


def main() -> int:
    """Runs all trials, three at a time, and prints a table."""
    reason = obstacle()
    if reason is not None:
        print(f"kdtrain: {reason}", file=sys.stderr)
        return 1
    trials = [(fault, victim) for fault in FAULTS for victim in (0, 1)]
    with tempfile.TemporaryDirectory(prefix="kdtrain-netsplit-") as folder, ThreadPoolExecutor(3) as pool:
        laboratory = Laboratory(Path(folder))
        outcomes = pool.map(lambda one: laboratory.trial(one[0], *one[1]), enumerate(trials, 1))
        print("| fault | at process | process 0 | process 1 | result.json |\n|---|---|---|---|---|")
        broken = []
        for row, problem in outcomes:
            print(row, flush=True)
            broken += [problem] if problem else []
    print("\n".join(broken) or "\nBroken: nothing")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
