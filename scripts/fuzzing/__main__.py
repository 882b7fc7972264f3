"""The command ``scripts/fuzz``: its targets, two at a time, and their results as Markdown."""

from __future__ import annotations

import argparse
import json
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KEPT = ROOT / ".fuzz"
SHARES = {
    "idx": 15,
    "gzip": 15,
    "gzipped idx": 10,
    "checkpoint": 15,
    "model": 2,
    "state": 4,
    "directory": 20,
    "configuration": 20,
    "plugin": 5,
    "photo": 6,
    "picture": 6,
    "npz": 10,
    "arrays": 15,
    "cifar": 5,
}
"""How the inputs are shared out: many to what takes little time for each."""

_MOST_DEATHS = 10


@dataclass
class Outcome:
    """What came of a target."""

    target: str
    inputs: int = 0
    seconds: float = 0.0
    findings: list[str] = field(default_factory=list)


def main() -> int:
    """Runs what the arguments ask for; returns 1 if anything was found."""
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__)
    parser.add_argument("target", nargs="*", help=f"which ones, of {', '.join(SHARES)} [all]")
    parser.add_argument("--runs", type=int, default=100_000, help="inputs in all [100000]")
    parser.add_argument("--seed", type=int, default=1, help="of the mutations, from 1 on [1]")
    options = parser.parse_args()
    if unknown := [name for name in options.target if name not in SHARES]:
        parser.error(f"there is no target {unknown[0]!r}; there are: {', '.join(SHARES)}")
    shutil.rmtree(KEPT, ignore_errors=True)
    started = time.monotonic()
    names = options.target or list(SHARES)
    each = options.runs / sum(SHARES[name] for name in names)
    runs = {name: max(1, round(each * SHARES[name])) for name in names}
    with (
        tempfile.TemporaryDirectory(dir=_memory(), prefix="kdtrain-fuzz-") as folder,
        ThreadPoolExecutor(2) as pool,
    ):
        fuzzed = pool.map(lambda name: _run(name, Path(folder) / name, runs[name], options.seed), names)
        outcomes = list(fuzzed)
    print("| target | inputs | seconds | findings |\n|---|---|---|---|")
    for outcome in outcomes:
        print(f"| {outcome.target} | {outcome.inputs:,} | {outcome.seconds:.0f} | {len(outcome.findings)} |")
    inputs, findings = sum(o.inputs for o in outcomes), sum(len(o.findings) for o in outcomes)
    print(f"| all | {inputs:,} | {time.monotonic() - started:.0f} | {findings} |")
    for outcome in outcomes:
        for finding in outcome.findings:
            print(f"\n{outcome.target}: {finding}", file=sys.stderr)
    return 1 if findings else 0


def _memory() -> str | None:
    return "/dev/shm" if Path("/dev/shm").is_dir() else None


def _run(name: str, folder: Path, runs: int, seed: int) -> Outcome:
    """Runs a target until it has had its inputs, also where its process dies on the way."""
    outcome = Outcome(name)
    for part in ("corpus", "findings"):
        (folder / part).mkdir(parents=True)
    for death in range(_MOST_DEATHS + 1):
        left = runs - outcome.inputs
        if left <= 0:
            break
        started = time.monotonic()
        said = _fuzz(name, folder, left, seed + death)
        outcome.seconds += time.monotonic() - started
        outcome.inputs += (
            struct.unpack("<Q", (folder / "inputs").read_bytes())[0] if (folder / "inputs").exists() else 0
        )
        if said is None:
            break
        outcome.findings.append(f"the process died: {said}")
    for file in sorted((folder / "findings").glob("*.json")):
        found = json.loads(file.read_text())
        outcome.findings.append(f"{found['kind']} ({KEPT / name / file.stem}.input)\n{found['details']}")
    if outcome.findings:
        shutil.copytree(folder / "findings", KEPT / name)
    print(f"{name}: {outcome.inputs:,} inputs, {len(outcome.findings)} findings", file=sys.stderr, flush=True)
    return outcome


def _fuzz(name: str, folder: Path, runs: int, seed: int) -> str | None:
    """Returns None once all inputs were run, or what the dying process said last."""
    options = {
        "runs": runs,
        "seed": seed,
        "max_len": 8192,
        "timeout": 30,
        "rss_limit_mb": 4096,
        "verbosity": 0,
    }
    words = [f"-{option}={value}" for option, value in options.items()]
    words.append(f"-artifact_prefix={folder / 'findings'}/died-")
    ended = subprocess.run(
        [sys.executable, "-m", "scripts.fuzzing.worker", name, str(folder), str(runs), *words],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=False,
    )
    said = ended.stderr.decode(errors="replace").strip()
    return None if ended.returncode == 0 else f"exit code {ended.returncode}\n{said[-1500:]}"


if __name__ == "__main__":
    sys.exit(main())
