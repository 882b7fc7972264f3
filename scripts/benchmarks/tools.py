"""What all measurements share: running commands, medians, ratios with their spread."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KDTRAIN = (sys.executable, "-m", "kdtrain")


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        what: what was measured.
        result: the figures, with their spread.
        target: what was promised.
        kept: whether the promise was kept; None where there is none.
    """

    what: str
    result: str
    target: str = ""
    kept: bool | None = None


def side_by_side(
    first: Callable[[], float], second: Callable[[], float], repeats: int
) -> tuple[list[float], list[float]]:
    """Measures two things in turn, each as often first, so that a machine's moods meet both."""
    pairs = []
    for number in range(repeats):
        if number % 2:
            later = second()
            pairs.append((first(), later))
        else:
            pairs.append((first(), second()))
    return [one for one, _ in pairs], [other for _, other in pairs]


def ratio_row(what: str, ours: Sequence[float], theirs: Sequence[float], most: float, other: str) -> Row:
    """Returns the line of a comparison: medians, and the ratio of each pair."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    ratio = statistics.median(ratios)
    result = (
        f"{statistics.median(ours):.3g} s, {other} {statistics.median(theirs):.3g} s: "
        f"ratio {ratio:.3f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, n = {len(ratios)})"
    )
    return Row(what, result, f"at most {most:g} x", ratio <= most)


def kdtrain(*words: str | Path, cores: str | None = None) -> float:
    """Runs a kdtrain command; returns its wall seconds, the start of the process included.

    Raises:
        SystemExit: it failed.
    """
    pinned = ["taskset", "-c", cores] if cores is not None else []
    start = time.perf_counter()
    finished = subprocess.run(
        [*pinned, *KDTRAIN, *map(str, words)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if finished.returncode != 0:
        raise SystemExit(f"kdtrain {' '.join(map(str, words))} failed:\n{finished.stderr}")
    return time.perf_counter() - start


def epochs_of(run: Path) -> list[float]:
    """Returns the seconds of each of a run's epochs, evaluation included."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["train_seconds"] + row["eval_seconds"] for row in rows]


def answer(command: Sequence[str | Path], **environment: str) -> Any:
    """Runs a program that prints JSON; returns that. What kdtrain has set for oneflow is unset for it."""
    ours = ("GLOG_minloglevel", "ONEFLOW_EAGER_TENSOR_INFER_CACHE_SIZE")
    finished = subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in ours} | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        raise SystemExit(f"{command} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1])


class PeakMemory:
    """Watches how much memory a command and its children hold; shared pages count once.

    Args:
        command: started at once.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self.megabytes = 0.0
        self.process = subprocess.Popen(
            [*map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def wait(self) -> float:
        """Waits for the end; returns the most megabytes that were held at a time."""
        if self.process.wait() != 0:
            raise SystemExit(f"{self.process.args!r} failed")
        self._watcher.join()
        return self.megabytes

    def _watch(self) -> None:
        while self.process.poll() is None:
            held = sum(_proportional_kilobytes(pid) for pid in _family(self.process.pid))
            self.megabytes = max(self.megabytes, held / 1024)
            time.sleep(1.0)  # reading the maps takes time from what is watched


def _family(pid: int) -> list[int]:
    """Returns a process and all that descend from it."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(member for child in children for member in _family(int(child)))]


def _proportional_kilobytes(pid: int) -> int:
    """Returns a process's memory, each shared page divided by those who share it."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
