"""The comparison of distillation methods: same networks, budget and seeds, and as many trials for each."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools import ROOT

from kdtrain.data.datasets import load_dataset
from kdtrain.experiment.fit import FitSpec
from kdtrain.experiment.modes import MODES
from kdtrain.experiment.result import FitResult
from kdtrain.experiment.session import Session
from kdtrain.experiment.settings.config import FitConfig, recipe_for, recipe_settings
from kdtrain.experiment.teachers.find import trained_here
from kdtrain.metrics.names import Interval
from kdtrain.metrics.statistics import t_interval
from kdtrain.runtime.files import make_folder, temporary_folder, write_text
from kdtrain.store.checkpoint import SavedModel, load_model
from kdtrain.store.metrics_file import read_metrics

PAGE = ROOT / "docs" / "methods.md"
TIMED_EPOCHS = 3
TEMPERATURES = (1.0, 2.0, 4.0)
CHOOSING_SEED = 100  # no seed of the tables
TEACHER_EPOCHS, TEACHER_BATCH = 20, 64
VALIDATION_IMAGES = 2_000

Settings = Mapping[str, Any]
"""Settings of FitConfig."""

Accuracies = dict[str, float]
"""Test accuracy, 0 to 1, by seed (as text, as JSON has it)."""


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        mode: student or student_kd.
        choices: three settings of its own, one of which is chosen by held-out accuracy: a temperature, where
            the method has one.
        chain: networks that are trained before the student, each the teacher of the next one.
    """

    mode: str
    choices: tuple[Settings, Settings, Settings]
    chain: tuple[str, ...] = ()

    def trials(self, augment: str) -> list[Settings]:
        """Returns its choices without views and with them, six for each method."""
        return [{**choice, "augment": text} for choice in self.choices for text in ("none", augment)]


@dataclass(frozen=True)
class Pair:
    """A teacher, a student, a budget, and the methods for them.

    Attributes:
        images: number of the students' training images. The teacher has all of them: a teacher that knew no
            more than its students would have nothing to teach them.
        epochs: number of the students' epochs.
    """

    teacher: str
    student: str
    images: int
    epochs: int
    methods: Mapping[str, Method]
    batch_size: int = 128


def distilled(*plugins: str, chain: tuple[str, ...] = ()) -> Method:
    """Returns soft targets at three temperatures, beside which plugins may compare layers."""
    low, middle, high = ({"plugin": plugins, "temperature": value} for value in TEMPERATURES)
    return Method("student_kd", (low, middle, high), chain)


def replacing(name: str, values: Sequence[float] = TEMPERATURES, argument: str = "temperature") -> Method:
    """Returns a plugin in the place of the soft targets, with three values of an argument."""
    low, middle, high = ({"plugin": (f"{name},{argument}={value}",), "alpha": 0.5} for value in values)
    return Method("student_kd", (low, middle, high))


def between(name: str, *pairs: tuple[str, str]) -> Method:
    """Returns a method that compares layers, in addition to the soft targets."""
    return distilled(
        *(f"{name},student_layer={student},teacher_layer={teacher}" for student, teacher in pairs)
    )


def by_weight(name: str, mode: str = "student_kd") -> Method:
    """Returns a plugin without a temperature, with three weights of its term."""
    low, middle, high = ({"plugin": (name,), "alpha": value} for value in (0.3, 0.5, 0.9))
    return Method(mode, (low, middle, high))


PLAIN, HINTON = "plain student", "soft targets (Hinton)"
COMMON = {
    PLAIN: Method("student", ({"weight_decay": 0.0}, {"weight_decay": 0.01}, {"weight_decay": 0.1})),
    HINTON: distilled(),
    "`label_smoothing`, no teacher": Method(
        "student",
        (
            {"plugin": ("label_smoothing,epsilon=0.05",)},
            {"plugin": ("label_smoothing,epsilon=0.1",)},
            {"plugin": ("label_smoothing,epsilon=0.2",)},
        ),
    ),
    "`hard_labels`": by_weight("hard_labels"),
    "`logit_mse`": replacing("logit_mse", (0.1, 0.3, 1.0), "weight"),
    **{f"`{name}`": replacing(name) for name in ("dkd", "dist", "logit_std", "nkd", "wsld", "norm_kd")},
    "`wttm`": replacing("wttm", (0.1, 0.2, 0.5), "gamma"),
    "`ctkd`": replacing("ctkd", (5.0, 10.0, 20.0), "span"),
}
PAIRS = (
    Pair(
        "teacher_cnn",
        "student_mlp",
        images=5_000,
        epochs=40,
        methods={
            **COMMON,
            "`fitnet`": between("fitnet", ("fc1", "fc1")),
            "`rkd`": between("rkd", ("fc2", "fc1")),
            "`similarity`": between("similarity", ("fc2", "fc1")),
            "`pkt`": between("pkt", ("fc2", "fc1")),
            "`vid`": between("vid", ("fc1", "fc1")),
            "`srrl`": between("srrl", ("fc2", "fc1")),
            "[two generations](../examples/chains/README.md)": distilled(chain=("student_mlp",)),
            "[assistant](../examples/chains/README.md) `student_cnn`": distilled(chain=("student_cnn",)),
        },
    ),
    Pair(
        "teacher_cnn",
        "student_cnn",
        images=2_000,
        epochs=20,
        batch_size=64,
        methods={
            **COMMON,
            "`attention`": between("attention", ("block1", "conv1"), ("block2", "conv2")),
            "`similarity`": between("similarity", ("block4", "fc1")),
            "`pkt`": between("pkt", ("block4", "fc1")),
            "`vid`": between("vid", ("block2", "conv2")),
            "`srrl`": between("srrl", ("block4", "fc1")),
            "`review_kd`": distilled("review_kd,student_layers=block2+block4,teacher_layers=conv2+fc1"),
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
            val_size=VALIDATION_IMAGES,
            logdir=folder,
            **data,
        )
        dataset = load_dataset(self.config.dataset, self.config.data_dir)
        recipe = recipe_settings(recipe_for(self.config.dataset, self.config.data_dir))
        self.augment: str = recipe["teacher_augment"]
        self.title = f"{dataset.name}, {pair.teacher} teaches {pair.student}"
        self.folder = folder / f"{dataset.name}-{pair.student}-{pair.images}x{pair.epochs}"
        self.teacher_file = folder / f"{dataset.name}-{pair.teacher}.safetensors"  # of all pairs
        make_folder(self.folder)
        self.file = self.folder / "results.json"
        self.results: dict[str, Accuracies] = {}
        self.chosen: dict[str, dict[str, Any]] = {}
        if self.file.exists():
            content = json.loads(self.file.read_text())
            self.results, self.chosen = content["test_accuracy"], content["chosen"]
        self.teacher_accuracy, self.teacher = self._teacher()

    def fill(self) -> None:
        """Chooses the settings of methods that have none yet, and trains the students without a result."""
        for name, method in self.pair.methods.items():
            if name not in self.chosen:
                print(f"{self.title}: {name}, choosing ...", file=sys.stderr, flush=True)
                self.chosen[name] = dict(self._choose(method))
                self._write()
            missing = [seed for seed in self.seeds if str(seed) not in self.results.get(name, {})]
            if missing:
                print(f"{self.title}: {name}, seeds {missing} ...", file=sys.stderr, flush=True)
                tested = self._train(method, self.chosen[name], missing, self.pair.epochs)[0]
                self.results.setdefault(name, {}).update(tested)
                self._write()

    def seconds(self) -> dict[str, float]:
        """Returns the seconds of an epoch of each method, summed over a chain, one run at a time."""
        return {
            name: self._train(method, self.chosen[name], [0], TIMED_EPOCHS)[1]
            for name, method in self.pair.methods.items()
        }

    def _write(self) -> None:
        content = {"test_accuracy": self.results, "chosen": self.chosen}
        write_text(self.file, json.dumps(content, indent=1) + "\n")

    def _choose(self, method: Method) -> Settings:
        """Returns the trial with the highest held-out accuracy; the test set is not read."""
        trials = method.trials(self.augment)
        runs = [(trial, CHOOSING_SEED) for trial in trials]
        with _quietly(), temporary_folder(self.folder) as folder:
            fits = self._fit(method, runs, self.pair.epochs, folder)
            scores = [fitted.saved.card.accuracy for _, fitted in fits]
        return trials[scores.index(max(scores))]

    def _teacher(self) -> tuple[float, SavedModel]:
        """Returns the teacher's test accuracy, 0 to 1, and the teacher, which the first table trains."""
        path, figures = self.teacher_file, self.teacher_file.with_suffix(".json")
        if not figures.exists():
            config = replace(
                self.config,
                mode="teacher",
                epochs=TEACHER_EPOCHS,
                batch_size=TEACHER_BATCH,
                limit_train=None,
                teacher_augment=self.augment,
            )
            with _quietly(), temporary_folder(self.folder) as run:
                session = Session.open(config)
                spec = FitSpec("teacher", 0, run / "teacher")
                [model] = session.run([session.fit_and_test_job(spec)])
                path.write_bytes(model.saved.path.read_bytes())
            write_text(figures, json.dumps({"test_accuracy": model.test.accuracy}) + "\n")
        accuracy: float = json.loads(figures.read_text())["test_accuracy"]
        return accuracy, load_model(path)

    def _train(
        self, method: Method, settings: Settings, seeds: Sequence[int], epochs: int
    ) -> tuple[Accuracies, float]:
        """Returns the test accuracy of each seed, and the median seconds of an epoch, seeds side by side."""
        with _quietly(), temporary_folder(self.folder) as run:
            fits = self._fit(method, [(settings, seed) for seed in seeds], epochs, run)
            session = Session.open(replace(self.config, mode=method.mode))
            jobs = [session.test_fitted_job(*fit) for fit in fits]
            accuracies = {str(model.result.seed): model.test.accuracy for model in session.run(jobs)}
            seconds = sum(_median_seconds(path) for path in run.glob("*_0"))
        return accuracies, seconds

    def _fit(
        self, method: Method, runs: Sequence[tuple[Settings, int]], epochs: int, folder: Path
    ) -> list[tuple[FitSpec, FitResult]]:
        """Trains the networks of a method for each pair of settings and seed, as many at a time as fit.

        Args:
            method: the method.
            runs: settings and seed of each run.
            epochs: number of epochs of each network.
            folder: folder of the run directories, ``STAGE_INDEX`` by the place in ``runs``.

        Returns:
            The last network of each run, with its specification.
        """
        session = Session.open(replace(self.config, mode=method.mode, epochs=epochs))
        distilled = method.mode == "student_kd"
        augments = {settings["augment"] for settings, _ in runs} if distilled else ()
        asking = {text: Session.open(replace(session.config, augment=text)) for text in augments}
        teachers = [self.teacher for _ in runs]
        last: list[tuple[FitSpec, FitResult]] = []
        for stage, arch in enumerate((*method.chain, self.pair.student)):
            specs = []
            for index, ((settings, seed), teacher) in enumerate(zip(runs, teachers, strict=True)):
                if distilled:
                    session.run(asking[settings["augment"]].soft_label_jobs({seed: trained_here(teacher)}))
                # A network of the chain that has the student's layers begins with weights of its own.
                again = stage == len(method.chain) and arch in method.chain
                specs.append(
                    FitSpec(
                        MODES[method.mode].fit,
                        seed,
                        folder / f"{stage}_{index}",
                        trained_here(teacher) if distilled else None,
                        settings={"student_arch": arch, **settings},
                        init_index=len(method.chain) if again else 0,
                    )
                )
            fits = session.run([session.fit_job(spec) for spec in specs])
            last = list(zip(specs, fits, strict=True))
            teachers = [fitted.saved for fitted in fits]
        return last

    def markdown(self, seconds: Mapping[str, float]) -> str:
        """Returns the table with a sentence about its budget."""
        pair, count = self.pair, len(self.seeds)
        lines = [
            f"{self.title}: {pair.images:,} training images, {pair.epochs} epochs in batches of "
            f"{pair.batch_size}, {count} seeds, one teacher of {TEACHER_EPOCHS} epochs with all images "
            f"({100 * self.teacher_accuracy:.2f} % test accuracy); views: {self.augment}.",
            "",
            "| method | chosen | test accuracy, % | to the plain student | to Hinton's soft targets "
            "| s an epoch |",
            "|---|---|---|---|---|---|",
        ]
        for name in pair.methods:
            interval = t_interval([100 * value for value in self._ordered(name)])
            plain = self._difference(name, PLAIN)
            hinton = self._difference(name, HINTON)
            accuracy = f"{interval.mean:.2f} ± {interval.sd or 0:.2f}"
            cells = (name, _choice(self.chosen[name]), accuracy, plain, hinton, f"{seconds[name]:.2f}")
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def _ordered(self, name: str) -> list[float]:
        return [self.results[name][str(seed)] for seed in self.seeds]

    def _difference(self, name: str, baseline: str) -> str:
        if name == baseline:
            return ""
        pairs = zip(self._ordered(name), self._ordered(baseline), strict=True)
        return _points(t_interval([100 * (accuracy - reference) for accuracy, reference in pairs]))


def _choice(settings: Settings) -> str:
    """Returns the chosen settings in a few words, such as ``T=2, views``."""
    words = [] if settings["augment"] == "none" else ["views"]
    for name, value in settings.items():
        if name == "plugin":
            arguments = [argument for spec in value for argument in spec.split(",")[1:]]
            words += [argument for argument in arguments if "layer" not in argument]
        elif name != "augment":
            words.append(f"{'T' if name == 'temperature' else name}={value:g}")
    return ", ".join(words)


def _median_seconds(run: Path) -> float:
    """Returns the median seconds of an epoch of training."""
    seconds: float = statistics.median(row["train_seconds"] for row in read_metrics(run))
    return seconds


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
    parser.add_argument("--epochs", type=int, help="the students' epochs [40; 20 for student_cnn]")
    parser.add_argument(
        "--images",
        type=int,
        help="the students' training images [5000; 2000 for student_cnn]",
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
