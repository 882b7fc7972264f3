"""Tools of all measurements: running commands, medians, ratios with their spread."""

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
THREADS = 2  # of kdtrain and of its peers, where the machine has as many cores


@dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        what: the measured quantity.
        result: the figures with their spread.
        target: the promised figure.
        kept: whether the target was met; None without a target.
    """

    what: str
    result: str
    target: str = ""
    kept: bool | None = None


def side_by_side(
    first: Callable[[], float], second: Callable[[], float], repeats: int
) -> tuple[list[float], list[float]]:
    """Measures two things in turn, with alternating order, so that a drift of the speed affects both."""
    pairs = []
    for number in range(repeats):
        if number % 2:
            later = second()
            pairs.append((first(), later))
        else:
            pairs.append((first(), second()))
    return [seconds for seconds, _ in pairs], [seconds for _, seconds in pairs]


def ratio_row(
    what: str, seconds: Sequence[float], peer_seconds: Sequence[float], most: float | None, peer: str
) -> Row:
    """Returns the row of a comparison: medians, and the median ratio of the pairs with its range.

    Args:
        what: the measured quantity.
        seconds: those of kdtrain.
        peer_seconds: those of its peer, pair by pair.
        most: the promised ratio; None if there is none.
        peer: the peer's name.
    """
    ratios = [a / b for a, b in zip(seconds, peer_seconds, strict=True)]
    result = (
        f"{statistics.median(seconds):.3g} s, {peer} {statistics.median(peer_seconds):.3g} s: "
        f"{ratios_text(ratios)}"
    )
    if most is None:
        return Row(what, result)
    return Row(what, result, f"at most {most:g} x", statistics.median(ratios) <= most)


def ratios_text(ratios: Sequence[float]) -> str:
    """Returns the median of ratios with their range and number, for a table."""
    return f"ratio {statistics.median(ratios):.3f} {range_text(ratios, '.2f')}"


def range_text(values: Sequence[float], form: str) -> str:
    """Returns the range and the number of values, in brackets, for a table."""
    return f"({min(values):{form}} to {max(values):{form}}, n = {len(values)})"


def kdtrain(*words: str | Path, cores: str | None = None) -> float:
    """Runs a kdtrain command; returns its wall-clock seconds, the start of the process included.

    Raises:
        SystemExit: the command failed.
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
    """Runs a program and returns the JSON that it prints; kdtrain's variables for oneflow are unset in it."""
    kdtrain_variables = ("GLOG_minloglevel", "ONEFLOW_EAGER_TENSOR_INFER_CACHE_SIZE")
    finished = subprocess.run(
        [*map(str, command)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in kdtrain_variables}
        | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        raise SystemExit(f"{command} failed:\n{finished.stderr}")
    return json.loads(finished.stdout.splitlines()[-1])


class PeakMemory:
    """Samples the memory of a command and its children; shared pages count once.

    Args:
        command: the command, which is started at once.
    """

    def __init__(self, command: Sequence[str | Path]) -> None:
        self.megabytes = 0.0
        self.process = subprocess.Popen(
            [*map(str, command)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._watcher = threading.Thread(target=self._watch)
        self._watcher.start()

    def wait(self) -> float:
        """Waits for the end of the command; returns its peak memory, MB."""
        if self.process.wait() != 0:
            raise SystemExit(f"{self.process.args!r} failed")
        self._watcher.join()
        return self.megabytes

    def _watch(self) -> None:
        while self.process.poll() is None:
            held = sum(_proportional_kilobytes(pid) for pid in _family(self.process.pid))
            self.megabytes = max(self.megabytes, held / 1024)
            time.sleep(1.0)  # reading the maps slows the command down


def _family(pid: int) -> list[int]:
    """Returns a process and all its descendants."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [pid, *(member for child in children for member in _family(int(child)))]


def _proportional_kilobytes(pid: int) -> int:
    """Returns the proportional set size of a process, kB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
