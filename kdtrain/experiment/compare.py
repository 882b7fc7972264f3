"""Mode compare: a teacher, and students that are paired seed by seed."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from msgspec.structs import replace

from kdtrain.data.dataset import Dataset
from kdtrain.errors import UsageError, unknown_name_message
from kdtrain.experiment.dry_run import dry_run
from kdtrain.experiment.fit import FitSpec, together
from kdtrain.experiment.loaders import count_validation
from kdtrain.experiment.modes import MODES, controls_of
from kdtrain.experiment.result import TestedModel, facts_of, far_apart_sentence, file_fidelity, keep_best
from kdtrain.experiment.session import Session, measured
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import absolute_paths, load_config, tuned_settings, without_folders
from kdtrain.experiment.teachers.find import (
    TeacherFigures,
    TrainedTeacher,
    describe_teacher,
    find_teacher,
    trained_here,
)
from kdtrain.experiment.warm_start import announce_first_weights
from kdtrain.metrics.evaluation import measure_fidelity
from kdtrain.report.comparison import Correct, compare
from kdtrain.report.comparison_plot import comparison_figure
from kdtrain.report.page import write_report
from kdtrain.report.style import picture_path, save_figure
from kdtrain.runtime.bars import command_bar, expect_epochs
from kdtrain.runtime.files import make_folder, write_bytes, write_text
from kdtrain.runtime.locations import command_name, short_name
from kdtrain.runtime.processes import Job
from kdtrain.store.checkpoint import save_tensors
from kdtrain.store.event_file import write_image
from kdtrain.store.record import (
    BEST_WEIGHTS,
    FILES,
    MODELS,
    SINGLE_MODES,
    Comparison,
    Difference,
    Model,
    ModelResult,
    logits_key,
    write_record,
)
from kdtrain.store.run_directory import run_directory

logger = logging.getLogger(__name__)

Models = dict[tuple[Model, int], TestedModel]
"""The models of a comparison by name and seed."""


@dataclass(frozen=True, eq=False, repr=False)
class ComparisonRun:
    """A comparison and its files.

    Attributes:
        comparison: the figures.
        directory: the run directory.
        picture: the chart, where the settings have it copied to, or in the run directory.
    """

    comparison: Comparison
    directory: Path
    picture: Path

    @property
    def results(self) -> tuple[ModelResult, ...]:
        """The figures of each model and seed."""
        return self.comparison.models

    @property
    def differences(self) -> tuple[Difference, ...]:
        """The paired differences between students; the first is that of distillation."""
        return self.comparison.differences

    @property
    def report(self) -> Path:
        """The page with all figures."""
        return self.directory / "report.html"

    @property
    def figures(self) -> Path:
        """The figures as JSON."""
        return self.directory / Comparison.FILE

    @property
    def sentences(self) -> tuple[str, ...]:
        """The plain verdict, then what it rests on and what else the comparison shows."""
        return self.comparison.sentences

    def checkpoint(self, model: str, seed: int | None = None) -> Path:
        """Returns the best weights of a model.

        Args:
            model: its name in the comparison, such as ``student_kd``.
            seed: its seed; the first one by default.

        Raises:
            UsageError: the comparison has not trained this model with this seed.
        """
        trained = [result for result in self.results if result.checkpoint is not None]
        for result in trained:
            if result.model == model and seed in (None, result.seed):
                return self.directory / str(result.checkpoint)
        names = [f"{result.model}, seed {result.seed}" for result in trained]
        wanted = model if seed is None else f"{model}, seed {seed}"
        raise UsageError(f"checkpoint: {unknown_name_message('trained model', wanted, names)}")

    def __repr__(self) -> str:
        text = repr(self.differences[0]).strip("<>").removeprefix("Difference ")
        return f"<ComparisonRun {text} ({self.directory})>"


def run_compare(config: FitConfig, resume: Path | None) -> ComparisonRun:
    """Trains and compares the networks of mode compare.

    Args:
        config: configuration of the comparison.
        resume: directory of a run to resume; None for a new one.
    """
    comparison, directory = run_comparison(Session.open(config), resume)
    return ComparisonRun(comparison, directory, _place_picture(config, directory))


def run_comparison(session: Session, resume: Path | None = None) -> tuple[Comparison, Path]:
    """Trains the models of every seed; returns the comparison and its directory.

    The directory gets ``compare.json``, ``compare.png``, ``report.html``, the logits of every model over
    the test set, and a run directory per seed and model.

    Args:
        session: configuration, data and jobs.
        resume: directory of a comparison to resume; what is trained already is only tested.
    """
    config, teacher = session.config, None
    if config.has_teacher_files:
        teacher = find_teacher(config, session.dataset, session.ranks)
    if teacher is not None:
        teacher.check_test()
        logger.info(describe_teacher(teacher, config, session.dataset))
    if resume is None:
        announce_first_weights(config, session.dataset)
    dry_run(config, session.dataset, teacher)
    with run_directory(config.logdir, "compare", resume, config.name) as directory, command_bar():
        if resume is None:
            write_text(directory / "config.toml", absolute_paths(config).to_toml())
        training = _Training(session, directory)
        models = training.run(teacher)
        for mode in SINGLE_MODES:
            of_mode = [model for (name, _), model in models.items() if name == mode]
            several = training.members if mode == "teacher" else ()
            keep_best(several or of_mode, config, session.ranks)
        results = _results(models)
        comparison = compare(
            results,
            _correct(models, session.dataset),
            far_apart=_far_apart(training.teacher_figures, models),
            **facts_of(config, session.dataset),
        )
        if resume is not None and (directory / FILES["report"]).exists():  # the last file
            logger.info(f"The comparison in {directory} was finished before: its files keep their figures.")
        elif session.ranks.rank == 0:
            _file(comparison, models, session, directory)
    return comparison, directory


class _Training:
    """The training of a comparison: teachers, then the students.

    The models of one seed see the same images in the same order.

    Attributes:
        teacher_figures: those of the first seed's teacher, once ``run`` has measured them.
        members: the teachers of --teachers, once ``run`` has tested them.
    """

    teacher_figures: TeacherFigures | None = None
    members: Sequence[TestedModel] = ()

    def __init__(self, session: Session, directory: Path) -> None:
        self.session = session
        self.config = session.config
        self.tuned = tuned_settings(session.config)
        self.directory = directory
        self.seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        self.students: list[Model] = ["student_kd", "student", *controls_of(self.config)]

    def run(self, existing_teacher: TrainedTeacher | None) -> Models:
        """Returns the tested models, seed by seed."""
        if len(self.seeds) > 1:
            logger.info(
                f"Seeds {self.seeds[0]} to {self.seeds[-1]}: each line begins with the model and its seed."
            )
        teachers_to_train = 0 if existing_teacher else len(self._teacher_seeds())
        expect_epochs(
            teachers_to_train * self.config.epochs_for("teacher")
            + len(self.seeds) * len(self.students) * self.config.epochs_for("student")
        )
        teachers, jobs = self._teachers(existing_teacher)
        first = self.seeds[0]
        teacher = measured(self.session, teachers[first])
        self.teacher_figures = teacher.figures
        teachers = {seed: teacher if same is teachers[first] else same for seed, same in teachers.items()}
        self.session.run(self.session.soft_label_jobs(teachers))
        for seed in self.seeds:
            for model in self.students:
                spec = self._spec(model, seed, teachers[seed])
                jobs[model, seed] = self.session.fit_and_test_job(spec)
        tested = dict(zip(jobs, self.session.run(list(jobs.values())), strict=True))
        if self.config.teachers > 1:
            self.members = [tested.pop(key) for key in list(tested) if key[0] == "teacher"]
            labels = self.session.dataset.test.labels
            tested["teacher", first] = together(self.members, teachers[first], labels)
        order = [(model, seed) for seed in self.seeds for model in MODELS]
        return {key: tested[key] for key in order if key in tested}

    def _teacher_seeds(self) -> range:
        """Returns the seeds of the teachers that are trained."""
        first = self.seeds[0]
        return self.seeds if self.config.teacher_per_seed else range(first, first + self.config.teachers)

    def _teachers(
        self, existing: TrainedTeacher | None
    ) -> tuple[dict[int, TrainedTeacher], dict[tuple[Model, int], Job[TestedModel]]]:
        """Returns the teacher of each seed, trained but untested, and the jobs that test the teachers."""
        session, first = self.session, self.seeds[0]
        if existing is not None:
            test = session.test_teacher_job(first, existing)
            return dict.fromkeys(self.seeds, existing), {("teacher", first): test}
        seeds = self._teacher_seeds()
        specs = {seed: self._spec("teacher", seed) for seed in seeds}
        fits = dict(zip(specs, session.run([session.fit_job(spec) for spec in specs.values()]), strict=True))
        jobs: dict[tuple[Model, int], Job[TestedModel]] = {
            ("teacher", seed): session.test_fitted_job(specs[seed], fits[seed]) for seed in seeds
        }
        if self.config.teacher_per_seed:
            return {seed: trained_here(fits[seed].saved) for seed in self.seeds}, jobs
        return dict.fromkeys(self.seeds, trained_here(*(fitted.saved for fitted in fits.values()))), jobs

    def _spec(self, model: Model, seed: int, teacher: TrainedTeacher | None = None) -> FitSpec:
        """Returns the fit of a model, with the settings that `kdtrain tune` chose for it.

        Args:
            model: its name in the comparison.
            seed: its seed.
            teacher: teacher of the seed, used by a distilled student only.
        """
        mode = MODES[model]
        alone = len(self.seeds) == self.config.teachers == 1
        return FitSpec(
            mode=mode.fit,
            seed=seed,
            directory=self.directory / f"seed_{seed}/{model}",
            teacher=teacher if mode.has_teacher else None,
            label=model if alone else f"{model}/{seed}",
            settings={"plugin": (*self.config.plugin, *mode.plugins), **self.tuned.get(model, {})},
        )


def _results(models: Models) -> list[ModelResult]:
    """Returns the figures of each model; fidelity is to the teacher of its seed, or to the only one."""
    teachers = {seed: model for (name, seed), model in models.items() if name == "teacher"}
    first = next(iter(teachers.values()))
    results = []
    for (name, seed), model in models.items():
        teacher = teachers.get(seed, first)
        place = f"seed_{seed}/{name}"
        trained = {"directory": place, "checkpoint": f"{place}/{BEST_WEIGHTS}"} if model.trained else {}
        result = replace(model.result, model=name, **trained)
        if model is not teacher:
            fidelity = measure_fidelity(model.logits, teacher.logits)
            result = replace(result, agreement=fidelity.agreement, divergence=fidelity.divergence)
        results.append(result)
    return results


def _correct(models: Models, dataset: Dataset) -> Correct:
    return {key: model.logits.argmax(axis=1) == dataset.test.labels for key, model in models.items()}


def _far_apart(figures: TeacherFigures | None, models: Models) -> str | None:
    """Returns a warning if held-out and test accuracy of the first teacher are far apart."""
    if figures is None:
        return None
    test = next(model.test for (name, _), model in models.items() if name == "teacher")
    return far_apart_sentence(
        "teacher",
        (figures.accuracy, figures.images),
        (test.accuracy, test.images),
        may_have_seen=figures.may_have_seen,
    )


def _file(comparison: Comparison, models: Models, session: Session, directory: Path) -> None:
    """Writes the figures, logits, chart and page of the comparison."""
    logits = {logits_key(name, seed): model.logits for (name, seed), model in models.items()}
    labels = session.dataset.test.labels.astype(np.int64)
    save_tensors(directory / FILES["test_logits"], {**logits, "labels": labels}, {})
    for model, result in zip(models.values(), comparison.models, strict=True):
        file_fidelity(model, result)
    write_record(directory, comparison)
    chart = directory / FILES["picture"]
    save_figure(comparison_figure(comparison, title_extra=short_name(session.dataset.name)), chart)
    write_image(directory, "comparison", chart)
    write_page(directory, session.dataset)


def write_page(directory: Path, dataset: Dataset) -> Path:
    """Writes ``report.html`` from the other files of a comparison; returns its path.

    Raises:
        DataError: the test labels of the data set are not those of the comparison.
        KdtrainError: a file is missing, damaged or of another version, or the page cannot be written.
    """
    config = load_config({}, directory / FILES["config"])
    return write_report(
        directory,
        dataset,
        settings=without_folders(config).to_toml(),
        command=_repeat_command(config),
        test_chose=count_validation(dataset, config) == 0,
    )


def _repeat_command(config: FitConfig) -> str:
    """Returns the command that makes a comparison again, in its run directory."""
    name = [] if config.name is None else ["--name", f"{config.name[:58]}-2"]  # only one run has a name
    return f"{command_name()} {shlex.join(['fit', '--config', FILES['config'], *name])}"


def _place_picture(config: FitConfig, directory: Path) -> Path:
    """Copies the chart of a comparison to where the settings say; returns its path."""
    picture = directory / FILES["picture"]
    if config.image_save_dir is None and config.image_save_name is None:
        return picture
    copy = picture_path(config.image_save_dir, config.image_save_name, Path("compare.png"))
    make_folder(copy.parent)
    write_bytes(copy, picture.read_bytes())
    return copy
