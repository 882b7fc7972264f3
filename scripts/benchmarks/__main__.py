"""The command ``scripts/bench``: runs the measurements and prints their table as Markdown."""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from bench import Bench
from logits import logits
from measures import (
    compare,
    distilled_epoch,
    growth,
    loader,
    seeds_side_by_side,
    start,
    student_epoch,
    student_kd,
    teacher_epoch,
)
from networks import networks
from pictures import image_folder
from serving import serving
from tools import ROOT, Row
from trainer_overhead import overhead

PEER = ROOT / ".venv-torch"
TORCH = ("torch==2.13.0", "torchvision==0.28.0")
MEASURES: dict[str, Callable[[Bench], list[Row]]] = {
    "networks": networks,
    "teacher": teacher_epoch,
    "student": student_epoch,
    "distilled": distilled_epoch,
    "student_kd": student_kd,
    "logits": logits,
    "compare": compare,
    "seeds": seeds_side_by_side,
    "overhead": overhead,
    "loader": loader,
    "decoding": image_folder,
    "growth": growth,
    "start": start,
    "serve": serving,
}
NEED_PEER = ("networks", "teacher", "student", "distilled", "student_kd")


def main() -> int:
    """Runs the measurements of the arguments; returns 1 if a target was missed."""
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Measures kdtrain's speed.")
    parser.add_argument("measure", nargs="*", help=f"measurements to run, of {', '.join(MEASURES)} [all]")
    parser.add_argument("--peer", choices=["torch"], help="compare with PyTorch, in a separate environment")
    parser.add_argument("--repeats", type=int, default=5, help="pairs of measurements [5]")
    parser.add_argument(
        "--images", type=int, default=11_000, help="images in an epoch of the slow measurements [11000]"
    )
    parser.add_argument("--steps", type=int, default=10, help="timed steps of a network in a process [10]")
    parser.add_argument("--output", type=Path, help="also write the table here")
    options = parser.parse_args()
    unknown = [name for name in options.measure if name not in MEASURES]
    if unknown:
        parser.error(f"there is no measurement {unknown[0]!r}; there are: {', '.join(MEASURES)}")
    names = options.measure or [name for name in MEASURES if options.peer or name not in NEED_PEER]
    if not options.peer and set(names) & set(NEED_PEER):
        parser.error(f"{', '.join(NEED_PEER)} are measured against --peer torch")

    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="kdtrain-bench-") as folder:
        peer = _peer() if options.peer else None
        bench = Bench(Path(folder), options.repeats, options.images, options.steps, peer)
        for name in names:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                measured = MEASURES[name](bench)
            for row in measured:
                print(f"  {row.result}", file=sys.stderr, flush=True)
            rows += measured
    table = _table(rows)
    print(table)
    if options.output is not None:
        options.output.write_text(f"{_heading()}\n{table}\n")
    return 0 if all(row.kept is not False for row in rows) else 1


def _peer() -> Path:
    """Returns the Python of an environment with PyTorch; creates the environment if it is missing."""
    python = PEER / "bin" / "python"
    if not _runs(python, "import torch, torchvision"):
        print(f"installing {' and '.join(TORCH)} into {PEER.name} ...", file=sys.stderr, flush=True)
        python3 = next(name for name in ("python3.11", "python3") if _runs(name, ""))
        subprocess.run([python3, "-m", "venv", "--clear", PEER], check=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", *TORCH, "numpy"], check=True)
    return python


def _runs(python: str | Path, code: str) -> bool:
    try:
        return subprocess.run([python, "-c", code], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


def _heading() -> str:
    with open("/proc/cpuinfo") as file:
        model = next(
            (line.split(":")[1].strip() for line in file if line.startswith("model name")), "unknown"
        )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return (
        "# Benchmarks\n\n"
        f"`scripts/bench {' '.join(sys.argv[1:])}`, {datetime.date.today()}, commit {commit.stdout.strip()}, "
        f"{len(os.sched_getaffinity(0))} cores of {model}, {platform.system()} {platform.machine()}. "
        "Two contestants are measured in turn; a ratio is the median over the pairs, with its range.\n"
    )


def _table(rows: list[Row]) -> str:
    verdicts = {True: "yes", False: "**no**", None: ""}
    lines = ["| what | measured | promised | kept |", "|---|---|---|---|"]
    lines += [f"| {row.what} | {row.result} | {row.target} | {verdicts[row.kept]} |" for row in rows]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
