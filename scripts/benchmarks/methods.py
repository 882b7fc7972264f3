"""The comparison of distillation methods: same networks, budget and seeds, and as many trials for each."""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import re
import statistics
import sys
import textwrap
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

PAGE = ROOT / "docs" / "methods.md"
RESULTS = ROOT / "scripts" / "benchmarks" / "methods_results"
TIMED_ROUNDS, TIMED_EPOCHS = 3, 5
TEMPERATURES = (1.0, 2.0, 4.0, 8.0, 16.0)
FACTORS = (0.03, 0.2, 1.0, 5.0, 30.0)  # of the paper's weight: three decades around it
CHOOSING_SEED = 100  # no seed of the tables
TEACHER_EPOCHS, TEACHER_BATCH = 20, 64
VALIDATION_IMAGES = 5_000

Settings = Mapping[str, Any]
"""Settings of FitConfig."""

FIGURES = ("accuracy", "cross_entropy", "calibration_error")

Figures = dict[str, dict[str, float]]
"""The figures of test images by seed (as text, as JSON has it): accuracy 0 to 1, nats per image, 0 to 1."""


@dataclass(frozen=True)
class Method:
    """A row of the table.

    Attributes:
        mode: student or student_kd.
        choices: five settings of its own, one of which is chosen by held-out accuracy.
        of_soft_targets: whether it has the temperature that the soft targets have chosen.
    """

    mode: str
    choices: tuple[Settings, ...]
    of_soft_targets: bool = False

    def trials(self, augment: str) -> list[Settings]:
        """Returns its choices without views and with them, ten for each method."""
        return [{**choice, "augment": text} for choice in self.choices for text in ("none", augment)]


@dataclass(frozen=True)
class Pair:
    """A teacher, a student, a budget, and the methods for them.

    Attributes:
        budget: the settings of the students' images, epochs and batches. Without ``labels`` the teacher has
            all images and the students a part of them: a teacher that knew no more than its students would
            have nothing to teach them. With ``labels`` the teacher has the labelled images, and its students
            the others, too.
        data: the data sets, of ``DATA``.
    """

    teacher: str
    student: str
    budget: Mapping[str, Any]
    methods: Mapping[str, Method]
    data: tuple[str, ...]


def replacing(name: str, values: Sequence[float] = TEMPERATURES, argument: str = "temperature") -> Method:
    """Returns a plugin in the place of the soft targets, with five values of an argument."""
    plugins = [f"{name},{argument}={value:g}" for value in values]
    return Method("student_kd", tuple({"plugin": (plugin,), "alpha": 0.5} for plugin in plugins))


def between(name: str, weights: Mapping[str, float], *layers: str) -> Method:
    """Returns a method that compares layers, in addition to the soft targets, with five weights.

    Args:
        name: the plugin.
        weights: the names of its weights with the values of its paper.
        layers: the arguments that name the layers; the plugin is given once for each.
    """

    def choice(factor: float) -> Settings:
        arguments = "".join(f",{weight}={value * factor:g}" for weight, value in weights.items())
        return {"plugin": tuple(f"{name},{pair}{arguments}" for pair in layers)}

    return Method("student_kd", tuple(map(choice, FACTORS)), of_soft_targets=True)


def pair(student: str, teacher: str) -> str:
    """Returns the arguments of a plugin that name its layers."""
    return f"student_layer={student},teacher_layer={teacher}"


PLAIN, HINTON = "plain student", "soft targets (Hinton)"
CONTROL, HARD = "`label_smoothing`, no teacher", "`hard_labels`"
BASELINES = (PLAIN, CONTROL, HARD)
DECAYS_AND_RATES = ((0.0, 0.003), (0.01, 0.003), (0.1, 0.003), (0.3, 0.003), (0.1, 0.001))
SHARES = (0.1, 0.3, 0.5, 0.7, 0.9)
COMMON = {
    PLAIN: Method("student", tuple({"weight_decay": decay, "lr": rate} for decay, rate in DECAYS_AND_RATES)),
    CONTROL: Method(
        "student",
        tuple({"plugin": (f"label_smoothing,epsilon={value}",)} for value in (0.02, 0.05, 0.1, 0.2, 0.4)),
    ),
    HARD: Method(
        "student_kd",
        tuple({"plugin": ("hard_labels",), "alpha": value} for value in (0.1, 0.3, 0.5, 0.7, 0.9)),
    ),
    HINTON: Method("student_kd", tuple({"temperature": value} for value in TEMPERATURES)),
    "`logit_mse`": replacing("logit_mse", FACTORS, "weight"),
    **{f"`{name}`": replacing(name) for name in ("dkd", "dist", "logit_std", "nkd", "wsld", "norm_kd")},
    "`wttm`": replacing("wttm", [1 / value for value in TEMPERATURES], "gamma"),
    "`ctkd`": replacing("ctkd", TEMPERATURES, "span"),
}
WEIGHT = {"weight": 1.0}
DENSE = {
    **COMMON,
    "`fitnet`": between("fitnet", WEIGHT, pair("fc1", "fc1")),
    "`rkd`": between("rkd", {"distance": 25, "angle": 50}, pair("fc2", "fc1")),
    "`similarity`": between("similarity", {"weight": 3000}, pair("fc2", "fc1")),
    "`pkt`": between("pkt", {"weight": 470}, pair("fc2", "fc1")),
    "`vid`": between("vid", WEIGHT, pair("fc1", "fc1")),
    "`srrl`": between("srrl", WEIGHT, pair("fc2", "fc1")),
}  # review_kd takes a hundred times a plain epoch of this student: its fits alone would take over an hour
CONVOLUTIONAL = {
    **COMMON,
    "`fitnet`": between("fitnet", WEIGHT, pair("block1.1", "conv2")),
    "`attention`": between("attention", {"weight": 1000}, pair("block1", "conv1"), pair("block2", "conv2")),
    "`rkd`": between("rkd", {"distance": 25, "angle": 50}, pair("block4", "fc1")),
    "`similarity`": between("similarity", {"weight": 3000}, pair("block4", "fc1")),
    "`pkt`": between("pkt", {"weight": 470}, pair("block4", "fc1")),
    "`vid`": between("vid", WEIGHT, pair("block1.1", "conv2")),
    "`srrl`": between("srrl", WEIGHT, pair("block4", "fc1")),
    "`review_kd`": between("review_kd", WEIGHT, "student_layers=block2+block4,teacher_layers=conv2+fc1"),
}
DATA = ("mnist", "fashion_mnist")
WITHOUT_LABELS = {name: method for name, method in DENSE.items() if name != "`dkd`"}  # needs a label for each
PAIRS = (
    Pair("teacher_cnn", "student_mlp", {"limit_train": 5_000, "epochs": 40, "batch_size": 128}, DENSE, DATA),
    Pair(
        "teacher_cnn",
        "student_mlp",
        {"labels": "5000", "epochs": 10, "batch_size": 32, "transfer_share": 0.75},
        WITHOUT_LABELS,
        ("mnist",),
    ),
    Pair(
        "teacher_cnn",
        "student_cnn",
        {"limit_train": 2_000, "epochs": 20, "batch_size": 64},
        CONVOLUTIONAL,
        ("fashion_mnist",),
    ),
)


class Table:
    """The results on one data set with one pair of networks; each is written to disk at once.

    Args:
        pair: the networks and methods.
        data: the settings of FitConfig for the data set.
        seeds: number of students of each method.
        folder: folder of the results and the teachers; existing ones are not trained again.
    """

    def __init__(self, pair: Pair, data: Mapping[str, Any], seeds: int, folder: Path) -> None:
        self.pair = pair
        self.seeds = range(seeds)
        self.few_labels = "labels" in pair.budget
        self.config = FitConfig(
            mode="student_kd",
            teacher_arch=pair.teacher,
            student_arch=pair.student,
            val_size=None if self.few_labels else VALIDATION_IMAGES,
            logdir=folder,
            **pair.budget,
            **data,
        )
        self.dataset = load_dataset(self.config.dataset, self.config.data_dir).name
        recipe = recipe_settings(recipe_for(self.config.dataset, self.config.data_dir))
        self.augment: str = recipe["teacher_augment"]
        known = f"{pair.budget['labels']} labels" if self.few_labels else "all images"
        self.teacher_file = folder / f"{self.dataset}-{pair.teacher}, {known}.safetensors"
        images = known if self.few_labels else f"{pair.budget['limit_train']} images"
        self.name = f"{self.dataset}, {pair.student}, {images}"
        self.file = folder / f"{self.name}.json"
        make_folder(folder)
        content = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.teacher_accuracy: float = content.get("teacher_accuracy", math.nan)
        self.results: dict[str, Figures] = content.get("test", {})
        self.chosen: dict[str, dict[str, Any]] = content.get("chosen", {})
        self.seconds: dict[str, float] = content.get("seconds", {})

    def fill(self) -> None:
        """Chooses the settings of methods that have none yet, and trains the students without a result."""
        for name, method in self.pair.methods.items():
            if name not in self.chosen:
                print(f"{self.name}: {name}, choosing ...", file=sys.stderr, flush=True)
                self.chosen[name] = dict(self._choose(method))
                self._write()
            missing = [seed for seed in self.seeds if str(seed) not in self.results.get(name, {})]
            if missing:
                print(f"{self.name}: {name}, seeds {missing} ...", file=sys.stderr, flush=True)
                self.results.setdefault(name, {}).update(self._test(method, self.chosen[name], missing))
                self._write()

    def measure_seconds(self) -> None:
        """Measures the seconds of an epoch if they are missing, one run at a time, methods in turn."""
        if self.seconds.keys() >= self.pair.methods.keys():
            return
        seconds: dict[str, list[float]] = {name: [] for name in self.pair.methods}
        for _ in range(TIMED_ROUNDS):
            for name, method in self.pair.methods.items():
                with self._run_folder() as folder:
                    [(_, fitted)] = self._fit(method, [(self.chosen[name], 0)], TIMED_EPOCHS, folder)
                seconds[name] += [row["train_seconds"] for row in fitted.history]
        self.seconds = {name: statistics.median(values) for name, values in seconds.items()}
        self._write()

    def _write(self) -> None:
        content = {
            "teacher_accuracy": self.teacher_accuracy,
            "chosen": self.chosen,
            "test": self.results,
            "seconds": self.seconds,
        }
        write_text(self.file, json.dumps(content, indent=1) + "\n")

    @contextlib.contextmanager
    def _run_folder(self) -> Iterator[Path]:
        """Yields a folder for runs; nothing is printed meanwhile."""
        with (
            open(os.devnull, "w") as nowhere,
            contextlib.redirect_stderr(nowhere),
            temporary_folder(self.file.parent) as folder,
        ):
            yield folder

    @functools.cached_property
    def teacher(self) -> SavedModel:
        """The teacher. The first table that needs it trains it; its test accuracy comes into the results."""
        path, figures = self.teacher_file, self.teacher_file.with_suffix(".json")
        if not figures.exists():
            config = replace(
                self.config,
                mode="teacher",
                epochs=5 * TEACHER_EPOCHS if self.few_labels else TEACHER_EPOCHS,
                batch_size=TEACHER_BATCH,
                limit_train=None,
                transfer_share=FitConfig.transfer_share,
                teacher_augment=self.augment,
            )
            with self._run_folder() as run:
                session = Session.open(config)
                spec = FitSpec("teacher", 0, run / "teacher")
                [model] = session.run([session.fit_and_test_job(spec)])
                path.write_bytes(model.saved.path.read_bytes())
            write_text(figures, json.dumps({"test_accuracy": model.test.accuracy}) + "\n")
        self.teacher_accuracy = json.loads(figures.read_text())["test_accuracy"]
        return load_model(path)

    def _choose(self, method: Method) -> Settings:
        """Returns the trial with the highest held-out accuracy; the test set is not read."""
        trials: list[Settings] = method.trials(self.augment)
        if method.of_soft_targets:
            temperature = self.chosen[HINTON]["temperature"]
            trials = [{**trial, "temperature": temperature} for trial in trials]
        runs = [(trial, CHOOSING_SEED) for trial in trials]
        with self._run_folder() as folder:
            fits = self._fit(method, runs, self.pair.budget["epochs"], folder)
            scores = [fitted.saved.card.accuracy for _, fitted in fits]
        return trials[scores.index(max(scores))]

    def _test(self, method: Method, settings: Settings, seeds: Sequence[int]) -> Figures:
        """Returns the test figures of students with these seeds."""
        with self._run_folder() as folder:
            runs = [(settings, seed) for seed in seeds]
            fits = self._fit(method, runs, self.pair.budget["epochs"], folder)
            session = Session.open(replace(self._mode(method), epochs=self.pair.budget["epochs"]))
            models = session.run([session.test_fitted_job(*fit) for fit in fits])
        return {
            str(model.result.seed): {figure: getattr(model.test, figure) for figure in FIGURES}
            for model in models
        }

    def _mode(self, method: Method) -> FitConfig:
        """Returns the configuration for a method; a student alone has no images without labels."""
        share = self.config.transfer_share if method.mode == "student_kd" else FitConfig.transfer_share
        return replace(self.config, mode=method.mode, transfer_share=share)

    def _fit(
        self, method: Method, runs: Sequence[tuple[Settings, int]], epochs: int, folder: Path
    ) -> list[tuple[FitSpec, FitResult]]:
        """Trains a method's student for each pair of settings and seed, as many at a time as fit.

        Args:
            method: the method.
            runs: settings and seed of each run.
            epochs: number of epochs.
            folder: folder of the run directories.

        Returns:
            The student of each run, with its specification.
        """
        session = Session.open(replace(self._mode(method), epochs=epochs))
        teacher = trained_here(self.teacher) if method.mode == "student_kd" else None
        if teacher is not None:
            for augment in {settings["augment"] for settings, _ in runs}:
                outputs = Session.open(replace(session.config, augment=augment))
                for seed in {seed for _, seed in runs}:
                    session.run(outputs.soft_label_jobs({seed: teacher}))
        specs = [
            FitSpec(MODES[method.mode].fit, seed, folder / str(index), teacher, settings=settings)
            for index, (settings, seed) in enumerate(runs)
        ]
        fits = session.run([session.fit_job(spec) for spec in specs])
        return list(zip(specs, fits, strict=True))

    def markdown(self) -> str:
        """Returns the table with a sentence about its budget."""
        budget = ", ".join(f"{name} {value}" for name, value in self.pair.budget.items())
        lines = [
            f"### {self.name}",
            "",
            f"{self.pair.teacher} ({100 * self.teacher_accuracy:.2f} % of the test images) teaches "
            f"{self.pair.student}; {budget}; {len(self.seeds)} seeds; views: {self.augment}.",
            "",
            "| method | chosen | accuracy, % | cross-entropy | calibration error, % | to plain, points "
            "| to the control | to hard labels | s an epoch |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name in self.pair.methods:
            accuracy = t_interval([100 * value for value in self._by_seed(name, "accuracy")])
            entropy, calibration = (statistics.mean(self._by_seed(name, figure)) for figure in FIGURES[1:])
            cells = [
                *(name, _choice(self.chosen[name]), f"{accuracy.mean:.2f} ± {accuracy.sd or 0:.2f}"),
                *(f"{entropy:.3f}", f"{100 * calibration:.1f}"),
                *(self._difference(name, baseline) for baseline in BASELINES),
                f"{self.seconds[name]:.2f}" if name in self.seconds else "",
            ]
            lines.append(f"| {' | '.join(cells)} |")
        return "\n".join(lines)

    def measured(self, plugin: str) -> str:
        """Returns what a plugin's card has of this table; nothing if it is not in it."""
        name = next((name for name in self.pair.methods if name.startswith(f"`{plugin}`")), None)
        if name is None:
            return ""
        gains = zip(self._by_seed(name, "accuracy"), self._by_seed(PLAIN, "accuracy"), strict=True)
        gain = statistics.mean(100 * (accuracy - plain) for accuracy, plain in gains)
        return f"{self.name}: {gain:+.2f} points, {self.seconds[name] / self.seconds[PLAIN]:.1f} x the epoch"

    def _by_seed(self, name: str, figure: str) -> list[float]:
        return [self.results[name][str(seed)][figure] for seed in self.seeds]

    def _difference(self, name: str, baseline: str) -> str:
        """Returns the points of accuracy beyond those of a baseline."""
        if name == baseline:
            return ""
        pairs = zip(self._by_seed(name, "accuracy"), self._by_seed(baseline, "accuracy"), strict=True)
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


def _points(interval: Interval) -> str:
    if interval.low is None or interval.high is None:
        return f"{interval.mean:+.2f}"
    text = f"{interval.mean:+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"
    return text if interval.low <= 0 <= interval.high else f"**{text}**"


def write_cards(tables: Sequence[Table]) -> None:
    """Writes what was measured into the cards in the docstrings of the plugins."""
    for path in sorted((ROOT / "plugins").glob("*.py")):
        texts = [text for table in tables if (text := table.measured(path.stem))]
        card = f"Measured: against the plain student. {'; '.join(texts)}. See docs/methods.md."
        if not texts:
            card = "Measured: not yet."
        lines = textwrap.fill(card, 110, initial_indent=" " * 8, subsequent_indent=" " * 12)
        text = re.sub(r"^ {8}Measured:.*(\n {12}.*)*", lines, path.read_text(), flags=re.MULTILINE)
        write_text(path, text)


def main() -> None:
    """Fills tables, and writes them into the page and the plugins' cards."""
    parser = argparse.ArgumentParser(
        prog="scripts/methods", description="Compares the methods of distillation, for docs/methods.md."
    )
    places = [(pair, name) for pair in PAIRS for name in pair.data]
    numbers = range(1, len(places) + 1)
    parser.add_argument("table", nargs="*", type=int, help=f"fill these tables, of {numbers[-1]} [all]")
    parser.add_argument("--seeds", type=int, default=5, help="number of students of each method [5]")
    parser.add_argument("--epochs", type=int, help="the students' epochs, to try the script")
    parser.add_argument(
        "--fashion", type=Path, help="folder with the four files of Fashion-MNIST [they are downloaded]"
    )
    parser.add_argument("--logdir", type=Path, default=Path("logs/methods"), help="folder of the results")
    parser.add_argument(
        "--page",
        action="store_true",
        help="measure the seconds of an epoch, on a quiet machine, and write docs/methods.md and the cards",
    )
    options = parser.parse_args()
    if not set(options.table) <= set(numbers):
        parser.error(f"there are the tables 1 to {numbers[-1]}.")

    data: dict[str, dict[str, Any]] = {name: {"dataset": name} for name in DATA}
    if options.fashion is not None:
        data["fashion_mnist"] = {"data_dir": options.fashion}
    tables = []
    for number in options.table or numbers:
        pair, name = places[number - 1]
        if options.epochs is not None:
            pair = replace(pair, budget={**pair.budget, "epochs": options.epochs})
        tables.append(Table(pair, data[name], options.seeds, options.logdir))
        tables[-1].fill()
    if not options.page:
        return
    make_folder(RESULTS)
    for table in tables:
        table.measure_seconds()
        write_text(RESULTS / table.file.name, table.file.read_text())
    text = "\n\n".join(table.markdown() for table in tables)
    start, end = "<!-- tables: written by scripts/methods -->\n", "<!-- end of tables -->"
    before, _, rest = PAGE.read_text().partition(start)
    write_text(PAGE, f"{before}{start}\n{text}\n\n{end}{rest.partition(end)[2]}")
    write_cards(tables)


if __name__ == "__main__":
    main()
