"""Fault injection into real runs of kdtrain, with a count of what was lost.

Every combination of mode and options in tests/faults/combinations.py is killed
at random moments and resumed until it ends. What it leaves is compared bit for
bit with what an undisturbed run left. A test runs a few combinations,
`scripts/soak` all of them. The exit code is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.faults.combinations import COMBINATIONS
from tests.faults.disturbances import Disturbances, Outcome, kill_often
from tests.faults.laboratory import LANES, Laboratory

_WIDTH = max(map(len, COMBINATIONS))


def main() -> int:
    """Injects what the arguments ask for, and prints tables."""
    options = _parse()
    names = [name for name in COMBINATIONS if any(re.search(wanted, name) for wanted in options.only or [""])]
    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="kdtrain-soak-"))
    laboratory = Laboratory(folder)

    def kill(name: str) -> Outcome:
        outcome = kill_often(laboratory, name, options.kills, options.seed)
        end = "DIFFERENT" if outcome.losses else "same"
        print(
            f"{name:<{_WIDTH}}  {outcome.done.total():>3} kills, {outcome.tries:>2} tries  {end}", flush=True
        )
        return outcome

    with ThreadPoolExecutor(LANES) as pool:
        outcomes = list(pool.map(kill, names if options.kills else []))
    disturbances = Disturbances(laboratory, options.seed)
    disturbances.interrupt(options.interrupts)
    disturbances.double(options.pairs)
    outcomes.append(disturbances.outcome)

    done: Counter[str] = sum((outcome.done for outcome in outcomes), Counter())
    print(f"\nIn {(time.monotonic() - began) / 60:.0f} minutes, seed {options.seed}:\n")
    print("| fault | injected | slowest end |\n|---|---|---|")
    for fault, times in sorted(done.items()):
        slowest = f"{disturbances.slowest[fault]:.1f} s" if fault in disturbances.slowest else ""
        print(f"| {fault} | {times} | {slowest} |")
    kills = sum(times for fault, times in done.items() if fault.startswith("SIGKILL"))
    tries = sum(outcome.tries for outcome in outcomes)
    losses = [loss for outcome in outcomes for loss in outcome.losses]
    print(f"\nKills: {kills}, tries: {tries}, differences: {len(losses) or 'none'}")
    print("\n".join(losses), file=sys.stderr)
    if not losses:
        shutil.rmtree(folder)
    return 1 if losses or not done else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description=__doc__,
        epilog="combinations:\n  " + "\n  ".join(COMBINATIONS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=8, help="SIGKILLs for each combination [8]")
    parser.add_argument("--interrupts", type=int, default=60, help="SIGINT or SIGTERM [60]")
    parser.add_argument("--pairs", type=int, default=20, help="two fits at the same moment [20]")
    parser.add_argument("--seed", type=int, default=0, help="of the moments: repeats a failure [0]")
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="REGEX",
        help="kill only combinations whose names match (repeatable)",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
