"""Section 3 of Hinton, Vinyals, Dean, "Distilling the Knowledge in a Neural Network" (2015).

Trains the paper's networks through kdtrain's command line, and writes results.json and results.md
beside them, after each test anew. What is in --out already is not trained again, and what was
interrupted is gone on with. Flags that are not this script's are handed on to every fit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from kdtrain import write_text
from kdtrain.cli import main as kdtrain

TEACHER = shlex.split("--mode teacher --teacher-arch hinton_1200 --epochs 60 --plugin max_norm,limit=2")
STUDENT = shlex.split("--student-arch hinton_800 --epochs 20")
DISTILLED = shlex.split("--mode student_kd --temperature 20 --alpha 0.9")
ALL = shlex.split("--batch-size 256 --lr 0.002")
WITHOUT_3 = ("3",)
ONLY_7_AND_8 = tuple("01234569")
WAYS = {
    "transfer": "raised as the teacher says of the transfer set",
    "validation": "raised as the teacher says of validation images",
    "labels": "raised by the validation images' labels",
}
"""What ``kdtrain bias --by`` accepts, and what the table calls it."""

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
    """Where the runs are, and what came out so far: test errors by row of the table, then by seed."""

    out: Path
    data: list[str]
    flags: list[str]
    results: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def fit(self, name: str, *words: str) -> Path:
        """Trains a network, unless that is done; returns its run's directory."""
        run = self.out / name / words[words.index("--mode") + 1] / "version_0"
        result = run / "result.json"
        if result.exists() and "test" in json.loads(result.read_text()):
            return run
        logdir = ["--logdir", str(self.out / name)]
        call(
            "fit",
            *(["--resume", str(run)] if run.exists() else [*words, *ALL, *logdir, *self.data, *self.flags]),
        )
        return run

    def test(self, row: str, checkpoint: Path | str, shift: float | None = None) -> None:
        """Tests a network, and adds what comes out to a row of the table."""
        answer = json.loads(call("eval", str(checkpoint), "--json", *self.data))
        wrong = {
            entry["class"]: round(entry["images"] * (1 - entry["accuracy_fraction"]))
            for entry in answer["per_class"]
        }
        result = {"errors": answer["errors"], "errors_of_class": wrong, "shift": shift}
        self.results.setdefault(row, []).append(result)
        write_text(self.out / "results.json", json.dumps(self.results, indent=2) + "\n")
        write_text(self.out / "results.md", table(self.results))

    def distil(self, row: str, teacher: Path, seed: int, omitted: tuple[str, ...] = ()) -> None:
        """Trains and tests a distilled student, with its biases as they are and raised in each way."""
        left_out = [word for name in omitted for word in ("--omit-class", name)]
        checkpoint = ["--teacher-checkpoint", str(teacher), "--seed", str(seed)]
        run = self.fit(f"{row}_{seed}", *DISTILLED, *STUDENT, *checkpoint, *left_out)
        self.test(row, run / "checkpoints/best.safetensors")
        for way in WAYS if omitted else ():
            raised = json.loads(call("bias", str(run), "--by", way, "--json"))
            self.test(f"{row}_{way}", raised["checkpoint"], raised["shift"])


def call(*words: str) -> str:
    """Runs a command of kdtrain's; returns what it prints."""
    print(f"kdtrain {shlex.join(words)}", file=sys.stderr)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = kdtrain(words)
    if code:
        sys.exit(code)
    return printed.getvalue()


def table(results: dict[str, list[dict[str, Any]]]) -> str:
    """Returns the results beside the paper's, in Markdown."""
    names = {
        "teacher": "teacher, 1200-1200, dropout, max-norm, jitter",
        "student": "student, 800-800, alone",
        "student_kd": "student with soft targets, T=20",
        "without_3": "… no 3 in the transfer set",
        **{f"without_3_{way}": f"… bias of 3 {text}" for way, text in WAYS.items()},
        "only_7_8": "… only 7s and 8s in the transfer set",
        **{f"only_7_8_{way}": f"… the other biases {text}" for way, text in WAYS.items()},
    }
    lines = ["| test errors in 10,000 | paper | here | seeds | bias |", "|---|---|---|---|---|"]
    for row, name in names.items():
        if row not in results:
            continue  # not measured yet
        runs = results[row]
        here = spread([run["errors"] for run in runs])
        if row.startswith("without_3"):
            here += f" ({spread([run['errors_of_class']['3'] for run in runs])})"
        shifts = [run["shift"] for run in runs if run["shift"] is not None]
        bias = f"+{spread(shifts, 2)}" if shifts else ""
        lines.append(f"| {name} | {PAPER.get(row, '')} | {here} | {len(runs)} | {bias} |")
    return "\n".join(lines) + "\n"


def spread(values: list[float], digits: int = 0) -> str:
    """Returns the mean, with the standard deviation if there are several values."""
    text = f"{mean(values):,.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text


def main(words: list[str] | None = None) -> None:
    """Runs everything."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--out", type=Path, default=Path("logs/hinton2015"), help="[logs/hinton2015]")
    parser.add_argument("--seeds", type=int, default=1, help="students of each kind [1]")
    parser.add_argument("--data-dir", help="read the four IDX files from here instead of MNIST")
    options, flags = parser.parse_known_args(words)
    data = ["--data-dir", options.data_dir] if options.data_dir else []
    experiment = Experiment(options.out, data, flags)

    run = experiment.fit("teacher", *TEACHER)
    teacher = run / "checkpoints/best.safetensors"
    experiment.test("teacher", teacher)
    for seed in range(options.seeds):
        run = experiment.fit(f"student_{seed}", "--mode", "student", *STUDENT, "--seed", str(seed))
        experiment.test("student", run / "checkpoints/best.safetensors")
        experiment.distil("student_kd", teacher, seed)
        experiment.distil("without_3", teacher, seed, WITHOUT_3)
        experiment.distil("only_7_8", teacher, seed, ONLY_7_AND_8)
    print(table(experiment.results), end="")


if __name__ == "__main__":
    main()
