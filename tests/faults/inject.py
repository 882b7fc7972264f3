"""Injects faults into real runs of kdtrain, and counts what was lost.

A test runs it in a short form, ``scripts/soak`` in a long one; it ends with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader

from kdtrain.data.datasets import load_dataset
from kdtrain.store.checkpoint import load_model
from kdtrain.store.resume import load_state
from tests.runs import assert_same_run, count_points
from tests.tools import write_tiles

ROOT = Path(__file__).parents[2]
EPOCHS = 6
CASES = {
    "student": ("--mode", "student", "--augment", "shift=1", "--early-stopping", "9"),
    "student_kd": ("--mode", "student_kd", "--optimizer", "adadelta"),
    "teacher": ("--mode", "teacher", "--optimizer", "sgd", "--schedule", "cosine"),
}

# Kills the process that is about to give the file number N its name.
KILLER = """
import os, signal

from kdtrain import Callback

class Killer(Callback):
    def __init__(self, at: int):
        self.left = at

    def on_fit_start(self, run):
        rename = os.replace

        def replace(source, target):
            self.left -= 1
            if self.left == 0 and not os.path.exists("killed"):
                open("killed", "w").close()
                os.kill(os.getpid(), signal.SIGKILL)
            rename(source, target)

        os.replace = replace
"""


@dataclass
class Report:
    """What was done and found, by kind of fault."""

    done: Counter[str] = field(default_factory=Counter)
    losses: list[str] = field(default_factory=list)
    slowest: dict[str, float] = field(default_factory=dict)


class Laboratory:
    """A folder with data, a teacher, and an undisturbed run of each case."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.folder = folder
        self.random = random.Random(seed)
        self.report = Report()
        self.tiles = write_tiles(folder / "tiles", load_dataset())
        self.flags = ("--data-dir", self.tiles, "--val-size", 300, "--epochs", EPOCHS, "--batch-size", 64)
        self.seconds = {case: self._undisturbed(case) for case in ("teacher", "student_kd", "student")}

    def _undisturbed(self, case: str) -> float:
        began = time.monotonic()
        process = self.start(self.folder / "undisturbed", case)
        assert process.wait() == 0, (self.folder / "undisturbed" / "stderr").read_text()
        return time.monotonic() - began

    def start(
        self, folder: Path, case: str, *more: object, resume: Path | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a fit in ``folder``, with a folder for temporary files of its own."""
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        words: tuple[object, ...] = (*CASES[case], *self.flags, *more)
        if case == "student_kd":
            words += ("--teacher-checkpoint", self.folder / "undisturbed/logs/models/teacher.safetensors")
        if resume is not None:
            words = ("--resume", resume)
        with (folder / "stderr").open("ab") as said:
            return subprocess.Popen(
                [sys.executable, "-m", "kdtrain", "fit", *map(str, words)],
                cwd=folder,
                env=os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(folder / "tmp")},
                stdout=subprocess.DEVNULL,
                stderr=said,
                start_new_session=True,
            )

    def run_of(self, folder: Path, case: str) -> Path:
        """Where the fit's files are."""
        return folder / "logs" / case / "version_0"

    def finish(self, folder: Path, case: str) -> None:
        """Goes on to the end, and asserts that nothing was lost on the way."""
        run = self.run_of(folder, case)
        self.check_checkpoints(run)
        begun = (run / "config.toml").exists()
        process = self.start(folder, case, resume=run if begun else None)
        assert process.wait() == 0, (folder / "stderr").read_text()
        run = run if begun else max(run.parent.iterdir())
        assert_same_run(run, self.run_of(self.folder / "undisturbed", case))
        assert set(count_points(run).values()) == {1}, "TensorBoard has a point twice"
        left = [str(path) for path in folder.rglob("*") if path.name.endswith(".tmp")]
        assert left == [], "temporary files stayed"

    def check_checkpoints(self, run: Path) -> None:
        """Asserts that what is there is whole."""
        for name, load in (("best", load_model), ("last", load_state)):
            file = run / "checkpoints" / f"{name}.safetensors"
            if file.exists():
                load(file)

    # ------------------------------------------------------------------------------ the faults

    def kill(self, folder: Path, case: str, moment: float) -> None:
        """SIGKILL at a random moment, to the command, to all its processes or to one of its children."""
        whom = self.random.choice(["command", "all", "child"])
        resume = None
        while True:
            process = self.start(folder, case, resume=resume)
            time.sleep(moment * self.seconds[case])
            if process.poll() is None:
                self.report.done[f"SIGKILL, {whom}"] += 1
                _kill(process, whom)
            process.wait(timeout=60)
            _wait_for_session(process.pid)
            run = self.run_of(folder, case)
            self.check_checkpoints(run)
            if resume is not None or not (run / "config.toml").exists() or self.random.random() < 0.5:
                break
            resume = run  # kill what goes on, too
        self.finish(folder, case)

    def kill_before_rename(self, folder: Path, case: str, number: int) -> None:
        """SIGKILL when file number ``number`` is written but has not got its name yet."""
        folder.mkdir()
        (folder / "killer.py").write_text(KILLER)
        process = self.start(folder, case, "--plugin", f"killer.py:Killer,at={number}")
        process.wait(timeout=120)
        if not (folder / "killed").exists():
            return  # there are not so many files
        assert process.returncode == 1
        self.report.done["SIGKILL between write and rename"] += 1
        self.finish(folder, case)

    def interrupt(self, folder: Path, case: str, moment: float) -> None:
        """SIGINT or SIGTERM at a random moment."""
        number, code = self.random.choice([(signal.SIGINT, 130), (signal.SIGTERM, 143)])
        process = self.start(folder, case)
        time.sleep(moment * self.seconds[case])
        run, began = self.run_of(folder, case), time.monotonic()
        begun = (run / "checkpoints").exists()
        process.send_signal(number)
        ended = process.wait(timeout=30)
        seconds = time.monotonic() - began
        if ended == 0:
            return  # it came too late
        self.report.done[number.name] += 1
        self.report.slowest[number.name] = max(seconds, self.report.slowest.get(number.name, 0.0))
        assert seconds < 5, f"{number.name} took {seconds:.1f} s"
        result = json.loads((run / "result.json").read_text()) if begun else {}
        if ended == -number:  # Python did not listen yet, or not any more
            assert result.get("status") in (None, "completed"), result
            return
        assert ended == code, f"exit code {ended}"
        if begun:
            said = (folder / "stderr").read_text().splitlines()[-1]
            assert result["status"] in ("interrupted", "completed"), result
            assert f"/logs/{case}/version_0" in said, said
            for file in run.glob("events.*"):
                assert all(True for _ in RawEventFileLoader(str(file)).Load())
        self.finish(folder, case)

    def two_at_once(self, folder: Path, case: str, moment: float) -> None:
        """Two fits that start at the same moment in the same folder."""
        processes = [self.start(folder, case) for _ in range(2)]
        assert [process.wait() for process in processes] == [0, 0], (folder / "stderr").read_text()
        self.report.done["two fits at once"] += 1
        runs = sorted((folder / "logs" / case).iterdir())
        assert [run.name for run in runs] == ["version_0", "version_1"]
        for run in runs:
            assert_same_run(run, self.run_of(self.folder / "undisturbed", case))
        shared = (folder / f"logs/models/{case}.safetensors").read_bytes()
        assert shared in [(run / "checkpoints/best.safetensors").read_bytes() for run in runs]

    def renames(self, times: int) -> None:
        """Kills at each file of a run in turn, so often."""
        numbers = itertools.islice(itertools.cycle(range(1, 3 * EPOCHS)), times)

        def before_rename(folder: Path, case: str, moment: float) -> None:
            self.kill_before_rename(folder, case, next(numbers))

        self.repeat(before_rename, times)

    def repeat(self, fault: Callable[[Path, str, float], None], times: int) -> None:
        """Injects a fault so often, two at a time, spread over the cases and over the run's length."""
        cases = itertools.cycle(["student", "student", "student_kd", "teacher"])
        work = [(number, next(cases), self.random.random()) for number in range(times)]

        def once(number: int, case: str, moment: float) -> None:
            try:
                fault(self.folder / f"{fault.__name__}{number}", case, moment)
            except Exception:
                where = f"{fault.__name__} {number}, {case} at {moment:.3f}"
                self.report.losses.append(f"{where}:\n{traceback.format_exc()}")

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda item: once(*item), work))


def _kill(process: subprocess.Popen[bytes], whom: str) -> None:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        pids = [int(pid) for pid in children.read_text().split()]
        if whom == "all":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(pids[0] if whom == "child" and pids else process.pid, signal.SIGKILL)
    except (OSError, ValueError):
        pass  # it has just ended


def _wait_for_session(session: int) -> None:
    """Waits until no process of the session is left: children of a killed command close their files."""
    for _ in range(300):
        alive = False
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                alive |= int(stat.read_text().rpartition(")")[2].split()[3]) == session
            except OSError:
                continue
        if not alive:
            return
        time.sleep(0.1)
    raise AssertionError("children of a killed command live on")


def main() -> int:
    """Injects what the arguments ask for, and prints a table."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200, help="SIGKILL at random moments [200]")
    parser.add_argument("--renames", type=int, default=20, help="SIGKILL between write and rename [20]")
    parser.add_argument("--interrupts", type=int, default=60, help="SIGINT or SIGTERM [60]")
    parser.add_argument("--pairs", type=int, default=20, help="two fits at the same moment [20]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments [0]")
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kdtrain-soak-") as folder:
        laboratory = Laboratory(Path(folder), options.seed)
        laboratory.repeat(laboratory.kill, options.kills)
        laboratory.repeat(laboratory.interrupt, options.interrupts)
        laboratory.repeat(laboratory.two_at_once, options.pairs)
        laboratory.renames(options.renames)
    report = laboratory.report
    print(f"\nIn {(time.monotonic() - began) / 60:.0f} minutes, seed {options.seed}:\n")
    print("| fault | injected | slowest end |\n|---|---|---|")
    for fault, times in sorted(report.done.items()):
        slowest = f"{report.slowest[fault]:.1f} s" if fault in report.slowest else ""
        print(f"| {fault} | {times} | {slowest} |")
    print(f"\nLost: {len(report.losses) or 'nothing'}")
    print("\n".join(report.losses), file=sys.stderr)
    return 1 if report.losses or not report.done else 0


if __name__ == "__main__":
    sys.exit(main())
