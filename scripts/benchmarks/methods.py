"""The comparison of distillation methods: same networks, same budget, same seeds."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools import ROOT

from kdtrain.data.datasets import load_dataset
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.session import Session
from kdtrain.metrics.statistics import Interval, t_interval
from kdtrain.runtime.files import make_folder, temporary_folder, write_text
from kdtrain.store.checkpoint import SavedModel, load_model

PAGE = ROOT / "docs" / "methods.md"
TIMED_EPOCHS = 3
TEACHER_PATIENCE = 2  # times the students' epochs: a network with dropout is slower to learn

Accuracies = dict[str, float]
"""Test accuracy, 0 to 1, by seed (as text, as JSON has it)."""


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        mode: student or student_kd.
        settings: settings that differ from the defaults.
        chain: networks that are trained before the student, each the teacher of the next one.
    """

    mode: str = "student_kd"
    settings: Mapping[str, Any] = field(default_factory=dict)
    chain: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A teacher, a student, a budget, and the methods for them."""

    teacher: str
    student: str
    images: int
    epochs: int
    methods: Mapping[str, Method]
    batch_size: int = 128


def plugin(*specs: str, alpha: float = 0.9, mode: str = "student_kd") -> Method:
    """Returns the method of some plugins."""
    return Method(mode, {"plugin": specs, "alpha": alpha})


def between(name: str, *pairs: tuple[str, str]) -> Method:
    """Returns the method that compares layers, in addition to the soft targets."""
    return plugin(*(f"{name},student_layer={student},teacher_layer={teacher}" for student, teacher in pairs))


PLAIN, HINTON = "plain student", "soft targets (Hinton)"
PAIRS = (
    Pair(
        "hinton_1200",
        "student_mlp",
        images=5_000,
        epochs=20,
        methods={
            PLAIN: Method("student"),
            HINTON: Method(),
            "`label_smoothing`, no teacher": plugin("label_smoothing", mode="student"),
            "`hard_labels`": plugin("hard_labels", alpha=0.5),
            "`logit_mse`": plugin("logit_mse"),
            "`dkd`": plugin("dkd", alpha=0.5),
            "`dist`": plugin("dist", alpha=0.5),
            "`logit_std`": plugin("logit_std"),
            "`fitnet`": between("fitnet", ("fc1", "fc1")),
            "`rkd`": between("rkd", ("fc2", "fc2")),
            "`similarity`": between("similarity", ("fc2", "fc2")),
            "`--generations 2`": Method(chain=("student_mlp",)),
            "`--assistant-arch hinton_800`": Method(chain=("hinton_800",)),
        },
    ),
    Pair(
        "teacher_cnn",
        f"{ROOT}/scripts/benchmarks/small_cnn.py:make",
        images=2_000,
        epochs=20,
        batch_size=32,
        methods={
            PLAIN: Method("student"),
            HINTON: Method(),
            "`attention`": between("attention", ("conv1", "conv1"), ("conv2", "conv2")),
        },
    ),
)


class Table:
    """The results on one data set with one pair of networks; each is written to disk at once.

    Args:
        pair: the networks and methods.
        data: the settings of FitConfig for the data set.
        seeds: number of students of each method.
        folder: folder of the results and the teacher; existing ones are not trained again.
    """

    def __init__(self, pair: Pair, data: Mapping[str, Any], seeds: int, folder: Path) -> None:
        self.pair = pair
        self.seeds = range(seeds)
        self.config = FitConfig(
            mode="student_kd",
            teacher_arch=pair.teacher,
            student_arch=pair.student,
            limit_train=pair.images,
            epochs=pair.epochs,
            batch_size=pair.batch_size,
            logdir=folder,
            **data,
        )
        dataset = load_dataset(self.config.dataset, self.config.data_dir)
        student = pair.student.removeprefix(f"{ROOT}/scripts/benchmarks/")
        self.title = f"{dataset.name}, {pair.teacher} teaches {student}"
        self.folder = folder / f"{dataset.name}-{pair.teacher}-{pair.images}x{pair.epochs}"
        make_folder(self.folder)
        self.file = self.folder / "results.json"
        self.results: dict[str, Accuracies] = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.teacher_accuracy, self.teacher = self._teacher()

    def fill(self) -> None:
        """Trains the students that have no result yet."""
        for name, method in self.pair.methods.items():
            missing = [seed for seed in self.seeds if str(seed) not in self.results.get(name, {})]
            if missing:
                print(f"{self.title}: {name}, seeds {missing} ...", file=sys.stderr, flush=True)
                self.results.setdefault(name, {}).update(self._train(method, missing, self.pair.epochs)[0])
                write_text(self.file, json.dumps(self.results, indent=1) + "\n")

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of an epoch of each method, summed over a chain, one run at a time."""
        return {name: self._train(method, [0], TIMED_EPOCHS)[1] for name, method in self.pair.methods.items()}

    def _teacher(self) -> tuple[float, SavedModel]:
        path = self.folder / "teacher.safetensors"
        if not path.exists():
            epochs = self.pair.epochs * TEACHER_PATIENCE
            config = replace(self.config, mode="teacher", epochs=epochs, teacher_augment="none")
            with _quietly(), temporary_folder(self.folder) as run:
                session = Session(config)
                spec = FitSpec("teacher", 0, run / "teacher")
                [model] = session.run([session.fit_and_test_job(spec)])
                self.results["teacher"] = {"0": model.test.accuracy}
                path.write_bytes(model.saved.path.read_bytes())
            write_text(self.file, json.dumps(self.results, indent=1) + "\n")
        return self.results["teacher"]["0"], load_model(path)

    def _train(self, method: Method, seeds: Sequence[int], epochs: int) -> tuple[Accuracies, float]:
        """Returns the test accuracy of each seed, and the median seconds of an epoch, seeds side by side."""
        config = replace(self.config, mode=method.mode, epochs=epochs, **method.settings)
        teachers = dict.fromkeys(seeds, self.teacher)
        seconds = 0.0
        with _quietly(), temporary_folder(self.folder) as run:
            session = Session(config)
            for stage, arch in enumerate((*method.chain, self.pair.student)):
                distilled = method.mode == "student_kd"
                if distilled:
                    session.run(session.soft_label_jobs(teachers))
                jobs = [
                    session.fit_and_test_job(
                        FitSpec(
                            method.mode,
                            seed,
                            run / f"{stage}_{seed}",
                            teachers[seed] if distilled else None,
                            settings={"student_arch": arch},
                            init_index=stage if arch == self.pair.student else 0,
                        )
                    )
                    for seed in seeds
                ]
                trained = session.run(jobs)
                teachers = {model.seed: model.saved for model in trained}
                seconds += statistics.median(
                    row["train_seconds"] for model in trained for row in model.history
                )
        return {str(model.seed): model.test.accuracy for model in trained}, seconds

    def markdown(self, seconds: Mapping[str, float]) -> str:
        """Returns the table with a sentence about its budget."""
        pair, count = self.pair, len(self.seeds)
        lines = [
            f"{self.title}: {pair.images:,} training images, {pair.epochs} epochs in batches of "
            f"{pair.batch_size}, {count} seeds, one teacher of {pair.epochs * TEACHER_PATIENCE} epochs "
            f"({100 * self.teacher_accuracy:.2f} % test accuracy).",
            "",
            "| method | test accuracy, % | to the plain student | to Hinton's soft targets | s an epoch |",
            "|---|---|---|---|---|",
        ]
        for name in pair.methods:
            interval = t_interval([100 * value for value in self._ordered(name)])
            plain = self._difference(name, PLAIN)
            hinton = self._difference(name, HINTON)
            accuracy = f"{interval.mean:.2f} ± {interval.sd or 0:.2f}"
            lines.append(f"| {name} | {accuracy} | {plain} | {hinton} | {seconds[name]:.2f} |")
        return "\n".join(lines)

    def _ordered(self, name: str) -> list[float]:
        return [self.results[name][str(seed)] for seed in self.seeds]

    def _difference(self, name: str, baseline: str) -> str:
        if name == baseline:
            return ""
        pairs = zip(self._ordered(name), self._ordered(baseline), strict=True)
        return _points(t_interval([100 * (accuracy - reference) for accuracy, reference in pairs]))


def _points(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+.2f}"
    text = f"{interval.mean:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"
    return text if interval.low <= 0 <= interval.high else f"**{text}**"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
        yield


def main() -> None:
    """Fills the tables and writes them into the page."""
    parser = argparse.ArgumentParser(
        prog="scripts/methods", description="Compares the methods of distillation, for docs/methods.md."
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of students of each method [5]")
    parser.add_argument("--epochs", type=int, help="epochs of each network [20]")
    parser.add_argument(
        "--images", type=int, help="number of training images [5000; 2000 for the convolutional networks]"
    )
    parser.add_argument(
        "--data-dir",
        type=Path,
        action="append",
        default=[],
        help="a data set in addition to MNIST: a folder with four IDX files (repeatable)",
    )
    parser.add_argument("--logdir", type=Path, default=Path("logs/methods"), help="folder of the results")
    parser.add_argument(
        "--no-page", action="store_true", help="train only; do not measure seconds or write the page"
    )
    options = parser.parse_args()

    data: list[dict[str, Any]] = [{}, *({"data_dir": path} for path in options.data_dir)]
    budget = {key: value for key in ("epochs", "images") if (value := getattr(options, key)) is not None}
    pairs = [replace(pair, **budget) for pair in PAIRS]
    tables = [Table(pair, dataset, options.seeds, options.logdir) for pair in pairs for dataset in data]
    for table in tables:
        table.fill()
    if options.no_page:
        return
    text = "\n\n".join(table.markdown(table.seconds()) for table in tables)
    print(text)
    start, end = "<!-- tables: written by scripts/methods -->\n", "<!-- end of tables -->"
    before, _, rest = PAGE.read_text().partition(start)
    write_text(PAGE, f"{before}{start}\n{text}\n\n{end}{rest.partition(end)[2]}")


if __name__ == "__main__":
    main()
