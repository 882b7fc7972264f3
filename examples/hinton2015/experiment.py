"""Section 3 of Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015).

The script trains the paper's networks through kdtrain's command line, one on each core, and writes
results.json and results.md beside them. Finished runs in --out are not trained again, and interrupted runs
are resumed. Every fit gets the flags that this script does not have.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

from examples.hinton2015.bias import raise_biases_of
from kdtrain import write_text
from kdtrain.cli import main as kdtrain

TEACHER = shlex.split("--mode teacher --plugin dropout,hidden=0.25,inputs=0 --plugin max_norm,limit=1")
STUDENT = shlex.split("--mode student")
DISTILLED = shlex.split("--mode student_kd")
ALL = shlex.split("--recipe hinton2015")
JITTER = shlex.split("--augment shift=2")
CONTROLS = {
    "student_ls": [*STUDENT, "--plugin", "label_smoothing"],
    "student_jitter": [*STUDENT, *JITTER],
}
"""Table rows of students without a teacher, which the paper does not have, and their flags."""

TRANSFER_SETS = {"student_kd": "", "without_3": "3", "only_7_8": "01234569"}
"""Table rows of the distilled students, and the classes that their transfer sets lack."""

WAYS = {
    "transfer": "set by the teacher on the transfer set",
    "validation": "set by the teacher on the validation images",
    "labels": "set by the validation images' labels",
}
"""Ways to raise biases (``bias.py --by``), and their text in the table."""

PAPER = {
    "teacher": "67",
    "student": "146",
    "student_kd": "74",
    "without_3": "206 (133)",
    "without_3_labels": "109 (14), chosen on the test set",
    "only_7_8": "4,730",
    "only_7_8_labels": "1,320, chosen on the test set",
}
"""Test errors in 10,000 (of them on the 1,010 threes), as published."""


@dataclass
class Experiment:
    """The experiment's runs and results.

    Attributes:
        out: the folder of the runs.
        data: flags that choose the data.
        flags: further flags of every fit.
        results: one result per seed, by row of the table.
    """

    out: Path
    data: list[str]
    flags: list[str]
    results: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def train(self, fits: Mapping[str, Sequence[str]]) -> dict[str, Path]:
        """Trains networks side by side, except those that are finished.

        Args:
            fits: flags of ``kdtrain fit`` by the network's name.

        Returns:
            The run directories by the network's name.
        """
        runs = {name: self.out / name / _mode(flags) / "version_0" for name, flags in fits.items()}
        commands = {name: self._command(name, runs[name], flags) for name, flags in fits.items()}
        pending = {name: command for name, command in commands.items() if not _finished(runs[name])}
        cores = sorted(os.sched_getaffinity(0))
        # A thread's child processes inherit its core.
        pool = ThreadPoolExecutor(len(cores), "fit", lambda: os.sched_setaffinity(0, {cores.pop()}))
        try:
            for code in pool.map(_relayed, pending, pending.values()):
                if code:
                    sys.exit(code)
        finally:
            pool.shutdown(cancel_futures=True)
        return runs

    def test(
        self, row: str, run: Path, checkpoint: Path | str | None = None, shift: float | None = None
    ) -> None:
        """Tests a network, and adds the result to a row of the table.

        Args:
            row: the row's name.
            run: directory of the run that trained the network.
            checkpoint: the network's file; the run's best by default.
            shift: the number that was added to its biases.
        """
        figures = json.loads(call("eval", str(checkpoint or _best(run)), "--json", *self.data))
        errors_of_class = {
            entry["class"]: round(entry["images"] * (1 - entry["accuracy_fraction"]))
            for entry in figures["per_class"]
        }
        result = {
            "errors": figures["errors"],
            "errors_of_class": errors_of_class,
            "shift": shift,
            "minutes": _minutes(run),
        }
        self.results.setdefault(row, []).append(result)

    def test_raised(self, row: str, run: Path) -> None:
        """Tests a network with raised biases of the omitted classes, set in each of the ``WAYS``."""
        for way in WAYS:
            print(f"{run}: bias by {way}", file=sys.stderr)
            raised = raise_biases_of(run, way)
            self.test(f"{row}_{way}", run, raised.path, raised.shift)

    def write(self) -> None:
        """Writes results.json and results.md."""
        write_text(self.out / "results.json", json.dumps(self.results, indent=2) + "\n")
        write_text(self.out / "results.md", table(self.results))

    def _command(self, name: str, run: Path, flags: Sequence[str]) -> list[str]:
        if run.exists():
            return ["fit", "--resume", str(run)]
        return ["fit", *flags, *ALL, "--logdir", str(self.out / name), *self.data, *self.flags]


def _omit(classes: str) -> list[str]:
    return [flag for name in classes for flag in ("--omit-class", name)]


def _mode(flags: Sequence[str]) -> str:
    return flags[flags.index("--mode") + 1]


def _best(run: Path) -> Path:
    return run / "checkpoints" / "best.safetensors"


def _minutes(run: Path) -> float:
    """Returns the minutes of a run: its epochs times their median, which other work disturbs little."""
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    seconds: float = median(epoch["train_seconds"] + epoch["eval_seconds"] for epoch in epochs)
    return round(seconds * len(epochs) / 60, 2)


def _finished(run: Path) -> bool:
    result = run / "result.json"
    return result.exists() and bool(json.loads(result.read_text())["models"])


def _relayed(name: str, command: Sequence[str]) -> int:
    """Runs a kdtrain command as a process; prints its lines after ``name``; returns the exit code."""
    sys.stderr.write(f"{name}: kdtrain {shlex.join(command)}\n")  # one call, since several threads write
    arguments = [sys.executable, "-m", "kdtrain", *command]
    with subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            sys.stderr.write(f"{name}: {line}")
    return process.returncode


def call(*command: str) -> str:
    """Runs a kdtrain command in this process; returns its output."""
    print(f"kdtrain {shlex.join(command)}", file=sys.stderr)
    with contextlib.redirect_stdout(io.StringIO()) as output:
        code = kdtrain(command)
    if code:
        sys.exit(code)
    return output.getvalue()


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the results beside the paper's, in Markdown."""
    names = {
        "teacher": "teacher, 1200-1200, dropout, max-norm, jitter",
        "student": "student, 800-800, alone",
        "student_ls": "student with smoothed labels",
        "student_kd": "student with soft targets, T=20",
        "student_jitter": "student with jitter, alone",
        "student_kd_jitter": "student with jitter and soft targets, T=20",
        "without_3": "… no 3 in the transfer set",
        **{f"without_3_{way}": f"… bias of 3 {text}" for way, text in WAYS.items()},
        "only_7_8": "… only 7s and 8s in the transfer set",
        **{f"only_7_8_{way}": f"… the other biases {text}" for way, text in WAYS.items()},
    }
    lines = ["| test errors in 10,000 | paper | here | seeds | bias | minutes |", "|---|---|---|---|---|---|"]
    for row, name in names.items():
        if row not in results:
            continue
        runs = results[row]
        here = spread([run["errors"] for run in runs])
        if row.startswith("without_3"):
            here += f" ({spread([run['errors_of_class']['3'] for run in runs])})"
        shifts = [run["shift"] for run in runs if run["shift"] is not None]
        bias = f"+{spread(shifts, 2)}" if shifts else ""
        minutes = "" if shifts else f"{mean(run['minutes'] for run in runs):.1f}"
        lines.append(f"| {name} | {PAPER.get(row, '')} | {here} | {len(runs)} | {bias} | {minutes} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int = 0) -> str:
    """Returns the mean as text, with the standard deviation if there are several values."""
    text = f"{mean(values):,.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def main(arguments: list[str] | None = None) -> None:
    """Trains and tests all networks, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("logs/hinton2015"), help="[logs/hinton2015]")
    parser.add_argument("--seeds", type=int, default=1, help="students of each kind [1]")
    parser.add_argument("--data-dir", help="read the four IDX files from here instead of MNIST")
    options, flags = parser.parse_known_args(arguments)
    data = ["--data-dir", options.data_dir] if options.data_dir else []
    experiment = Experiment(options.out, data, flags)

    seeds = range(options.seeds)
    alone = {"student": STUDENT, **CONTROLS}
    plain = {f"{row}_{seed}": [*alone[row], "--seed", str(seed)] for row in alone for seed in seeds}
    runs = experiment.train({"teacher": TEACHER, **plain})
    distilled = [*DISTILLED, "--teacher-checkpoint", str(_best(runs["teacher"]))]
    runs |= experiment.train(
        {
            f"{row}_{seed}": [*distilled, "--seed", str(seed), *_omit(classes)]
            for row, classes in TRANSFER_SETS.items()
            for seed in seeds
        }
    )
    jittered = {f"student_kd_jitter_{seed}": [*distilled, "--seed", str(seed), *JITTER] for seed in seeds}
    runs |= experiment.train(jittered)
    experiment.test("teacher", runs["teacher"])
    for seed in seeds:
        for row in (*alone, "student_kd_jitter"):
            experiment.test(row, runs[f"{row}_{seed}"])
        for row, omitted in TRANSFER_SETS.items():
            experiment.test(row, runs[f"{row}_{seed}"])
            if omitted:
                experiment.test_raised(row, runs[f"{row}_{seed}"])
    experiment.write()
    print(table(experiment.results), end="")


if __name__ == "__main__":
    main()
