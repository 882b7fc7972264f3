"""A large folder of pictures, a teacher at their size: seconds, memory and disk of a fit, and after a kill.

    .venv/bin/python scripts/benchmarks/large_folder.py teacher.onnx FOLDER

The teacher is an ONNX file for 224x224 pixels of two classes, such as that of
``examples/teachers/run resnet18 ... --weights none``; what it recognises does not matter. FOLDER gets 20,000
pictures and the run, and is not removed.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent))
from pictures import write_pictures

ROOT = Path(__file__).resolve().parents[2]


def main() -> None:
    """Writes the pictures, fits, kills a second fit within its soft labels, and goes on with it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("teacher", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=20_000)
    parser.add_argument("--side", type=int, default=64, help="pixels of the student's images [64]")
    parser.add_argument("--kill-at", type=float, default=0.5, help="share of the soft labels' time [0.5]")
    options = parser.parse_args()
    pictures = options.folder / "pictures"
    if not pictures.is_dir():
        write_pictures(pictures, options.pictures, (224, 224))
    whole = fit(options, "whole")
    print(f"whole fit: {whole.seconds:.0f} s, peak {whole.peak / 1e9:.2f} GB of memory")
    for text, _ in whole.lines:
        if "ended after" in text:
            print(f"  {text}")
    cache = sum(path.stat().st_size for path in (options.folder / "whole/cache").rglob("*") if path.is_file())
    print(f"kept soft labels: {cache / 1e6:.1f} MB")
    begun, ended = (seconds for text, seconds in whole.lines if "soft labels" in text)
    killed = fit(options, "killed", kill_at=begun + options.kill_at * (ended - begun))
    again = fit(options, "killed")
    print(f"killed after {killed.seconds:.0f} s, within the soft labels; again: {again.seconds:.0f} s")
    print("\n".join(f"  {text}" for text, _ in again.lines if "ended after" in text))


class Fit(NamedTuple):
    """Seconds and peak of memory, in bytes, of a fit, and its lines, each with the second that it came in."""

    seconds: float
    peak: int
    lines: list[tuple[str, float]]


def fit(options: argparse.Namespace, name: str, kill_at: float | None = None) -> Fit:
    """Runs a fit, and kills it on wish. Memory is that of all processes, shared pages counted once (PSS)."""
    words = (
        *("fit", "--mode", "student_kd", "--dataset", f"folder:{options.folder / 'pictures'}"),
        *(
            "--image-size",
            str(options.side),
            "--teacher-checkpoint",
            str(options.teacher),
            "--allow-poor-teacher",
        ),
        *("--student-arch", "student_cnn", "--recipe", "none", "--augment", "none", "--epochs", "1"),
        *("--logdir", str(options.folder / name), "--keep", "never", "--verbose"),
    )
    began, peak, lines = time.monotonic(), 0, list[tuple[str, float]]()
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [ROOT / ".venv/bin/python", "-m", "kdtrain", *words],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    while (over := process.poll()) is None or lines == []:
        peak = max(peak, memory(process.pid))
        for line in iter(process.stdout.readline, ""):
            lines.append((line.strip(), time.monotonic() - began))
        if over is not None or (kill_at is not None and time.monotonic() - began > kill_at):
            break
        time.sleep(0.1)
    if kill_at is not None:
        os.killpg(process.pid, signal.SIGKILL)
    elif process.wait():
        sys.exit("\n".join(text for text, _ in lines))
    process.wait()
    lines += [(line.strip(), time.monotonic() - began) for line in process.stdout]
    return Fit(time.monotonic() - began, peak, lines)


def memory(process: int) -> int:
    """Returns the bytes of a process and of all that it has started."""
    parents, total = {}, 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has just ended
            parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
    for number in parents:
        ancestor = number
        while ancestor in parents and ancestor != process:
            ancestor = parents[ancestor]
        if ancestor == process:
            with contextlib.suppress(OSError, IndexError):
                rollup = Path(f"/proc/{number}/smaps_rollup").read_text()
                total += 1024 * int(re.findall(r"^Pss: +(\d+)", rollup, re.MULTILINE)[0])
    return total


if __name__ == "__main__":
    main()
