"""One process of the fuzzer: a target that runs on input after input, and records its violations."""

from __future__ import annotations

import json
import mmap
import os
import re
import resource
import struct
import sys
import time
import traceback
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["kdtrain", "PIL", "tomli", "safetensors"]):
    from kdtrain.errors import KdtrainError
    from scripts.fuzzing.targets import TARGETS, Check

SLOWEST = 5.0  # seconds for one input
MOST_MEMORY = 1 << 20  # KB, all of the process with Python and oneflow in it
LONGEST_TEXT = 20_000
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]")


class Witness:
    """Counts inputs, and keeps one of each kind that a target does not bear.

    Args:
        check: the target.
        counter: a file of 8 bytes for the number of inputs, readable while the process dies.
        folder: where the findings go.
        runs: after so many inputs the process ends. libFuzzer would call ``exit`` under a running
            Python, in which OneFlow's threads crash now and then.
    """

    def __init__(self, check: Check, counter: Path, folder: Path, runs: int) -> None:
        self.check = check
        self.runs = runs
        self.folder = folder
        self.known: set[str] = set()
        counter.write_bytes(bytes(8))
        with counter.open("r+b") as file:
            self.counter = mmap.mmap(file.fileno(), 8)
        self.inputs = 0

    def __call__(self, data: bytes) -> None:
        """Runs the target: only an error for people may come out, soon, and from little memory."""
        self.inputs += 1
        struct.pack_into("<Q", self.counter, 0, self.inputs)
        started = time.perf_counter()
        try:
            self.check(data)
        except KdtrainError as error:
            self._read(data, error)
        except BaseException as error:
            innermost = traceback.extract_tb(error.__traceback__)
            ours = [
                f"{Path(frame.filename).name}:{frame.lineno}"
                for frame in innermost
                if "kdtrain/" in frame.filename
            ]
            self._found(data, f"{type(error).__name__} in {(ours or ['?'])[-1]}", traceback.format_exc())
        seconds = time.perf_counter() - started
        if seconds > SLOWEST:
            self._found(data, "slow", f"{seconds:.1f} s")
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        if peak > MOST_MEMORY:
            self._found(data, "memory", f"{peak >> 10} MB")
            Path("/proc/self/clear_refs").write_text("5")  # resets the peak
        if self.inputs == self.runs:
            os._exit(0)

    def _read(self, data: bytes, error: KdtrainError) -> None:
        """Reads the error as a terminal would."""
        text = str(error)
        if CONTROLS.search(text) or len(text) > LONGEST_TEXT:
            self._found(data, f"unreadable {type(error).__name__}", ascii(text[:500]))

    def _found(self, data: bytes, kind: str, details: str) -> None:
        if kind in self.known:
            return
        self.known.add(kind)
        path = self.folder / f"{len(list(self.folder.iterdir()))}.input"
        path.write_bytes(data)
        path.with_suffix(".json").write_text(json.dumps({"kind": kind, "details": details}))


def main() -> None:
    """Takes the target, a folder, the number of inputs, and libFuzzer's options."""
    name, folder, runs = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    (folder / "work").mkdir(exist_ok=True)
    check = TARGETS[name].prepare(folder / "work")
    witness = Witness(check, folder / "inputs", folder / "findings", runs)
    for number, seed in enumerate(TARGETS[name].seeds()):
        (folder / "corpus" / f"seed{number}").write_bytes(seed)
    atheris.Setup([sys.argv[0], *sys.argv[4:], str(folder / "corpus")], witness)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
