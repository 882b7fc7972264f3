"""Carries out ``kdtrain fit --mode compare``: a teacher, and paired students seed by seed."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from kdtrain.data.dataset import Dataset
from kdtrain.experiment.config_file import absolute_paths, load_config
from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.grid_search import Chosen, choose_settings
from kdtrain.experiment.loaders import count_validation
from kdtrain.experiment.modes import COMPARE, LABEL_SMOOTHING, MODES
from kdtrain.experiment.rehearsal import rehearse
from kdtrain.experiment.repeat_command import command
from kdtrain.experiment.result import TestedModel, file_fidelity
from kdtrain.experiment.session import Session
from kdtrain.experiment.teacher import describe_teacher
from kdtrain.metrics.fidelity import measure_fidelity
from kdtrain.report.comparison import Comparison, EpochPoint, ModelResult, compare
from kdtrain.report.comparison_file import FILES, logits_key, to_json
from kdtrain.report.comparison_plot import comparison_figure
from kdtrain.report.grid_result import Settings, settings_text
from kdtrain.report.page import write_report
from kdtrain.report.style import save_figure
from kdtrain.runtime.files import write_text
from kdtrain.runtime.locations import short
from kdtrain.runtime.processes import Job
from kdtrain.store.checkpoint import SavedModel, save_tensors
from kdtrain.store.event_file import write_picture
from kdtrain.store.run_directory import run_directory

logger = logging.getLogger(__name__)


def run_comparison(session: Session, resume: Path | None = None) -> tuple[Comparison, Path]:
    """Trains the models for every seed; returns the comparison and its directory.

    The directory gets ``compare.json``, ``compare.png``, ``report.html``, every model's logits over the
    test set, and a run directory per seed and model.

    Args:
        session: the configuration and the data.
        resume: the directory of a comparison to go on with: what is trained already is only tested.
    """
    config = session.config
    given = session.find_teacher() if config.teacher_checkpoint is not None else None
    if given is not None:
        logger.info(describe_teacher(given, config, session.dataset))
    rehearse(config, session.dataset, given)
    with run_directory(config.logdir, "compare", resume) as directory:
        if resume is None:
            write_text(directory / "config.toml", absolute_paths(config).to_toml())
        trained, chosen = _Training(session, directory).run(given)
        for mode in MODES:
            own = [one for one in trained if one.mode == mode and one.directory is not None]
            if own:  # a teacher that was there already is not this run's
                session.keep(*own)
        comparison = compare(
            _results(trained, directory), {model: found.choice for model, found in chosen.items()}
        )
        if session.ranks.rank == 0:
            _file(comparison, trained, session, directory)
    return comparison, directory


class _Training:
    """What a comparison trains, and in which order: teachers, a grid if there is one, students.

    The test set is not looked at before all choices are made. The models of one seed see the same
    images in the same order.
    """

    def __init__(self, session: Session, directory: Path) -> None:
        self.session = session
        self.config = session.config
        self.directory = directory
        self.seeds = range(self.config.seed, self.config.seed + self.config.seeds)
        self.students = [model for model in COMPARE if model != "teacher"]
        if not self.config.with_label_smoothing:
            self.students.remove("student_ls")

    def run(self, given: SavedModel | None) -> tuple[list[TestedModel], dict[str, Chosen]]:
        """Returns all models by seed, and what was chosen; ``given`` is a teacher that is there already."""
        if len(self.seeds) > 1:
            logger.info(
                f"Seeds {self.seeds[0]} to {self.seeds[-1]}: each line begins with the model and its seed."
            )
        teachers, tests = self._teachers(given)
        self.session.prepare_soft_labels(teachers)
        first = self.seeds[0]
        chosen = choose_settings(
            self.session,
            self.students,
            lambda model, settings: self._plan(model, first, teachers[first], settings),
        )
        students = [(model, seed) for seed in self.seeds for model in self.students]
        jobs = [self._student(model, seed, teachers[seed], chosen.get(model)) for model, seed in students]
        trained = self.session.run([*tests, *jobs])
        names = ["teacher"] * len(tests) + [model for model, _ in students]
        trained = [dataclasses.replace(one, mode=name) for name, one in zip(names, trained, strict=True)]
        return sorted(trained, key=lambda one: (one.seed, COMPARE.index(one.mode))), chosen

    def _teachers(self, given: SavedModel | None) -> tuple[dict[int, SavedModel], list[Job[TestedModel]]]:
        """Returns each seed's teacher, trained but untested, and the jobs that test the teachers."""
        session = self.session
        if given is not None:
            return dict.fromkeys(self.seeds, given), [session.testing("teacher", self.config.seed, given)]
        seeds = self.seeds if self.config.teacher_per_seed else self.seeds[:1]
        plans = [self._plan("teacher", seed) for seed in seeds]
        fitted = session.run([session.fitting(plan) for plan in plans])
        own = {seed: fit.saved for seed, fit in zip(seeds, fitted, strict=True)}
        teachers = {seed: own.get(seed, fitted[0].saved) for seed in self.seeds}
        return teachers, [session.finishing(plan, fit) for plan, fit in zip(plans, fitted, strict=True)]

    def _student(self, model: str, seed: int, teacher: SavedModel, chosen: Chosen | None) -> Job[TestedModel]:
        """Returns the job that trains and tests a student; the best of the grid only has to be tested."""
        plan = self._plan(model, seed, teacher, chosen.choice.chosen.settings if chosen else {})
        if chosen is not None and seed == self.seeds[0]:
            return self.session.finishing(plan, chosen.fitted)
        return self.session.training(plan)

    def _plan(
        self, model: str, seed: int, teacher: SavedModel | None = None, settings: Settings | None = None
    ) -> FitSpec:
        """Returns the fit of a model; the first seed's with settings of their own is one of the grid's."""
        own: dict[str, Any] = dict(settings or {})
        folder, label = Path(f"seed_{seed}") / model, model
        if own and seed == self.seeds[0]:
            folder = Path("grid") / f"{model},{settings_text(own)}"
            label = f"{model},{settings_text(own)}"
        if model == "student_ls":
            own["plugin"] = (*self.config.plugin, LABEL_SMOOTHING)
        return FitSpec(
            mode="student" if model == "student_ls" else model,
            seed=seed,
            directory=self.directory / folder,
            teacher=teacher if model == "student_kd" else None,
            label=label if len(self.seeds) == 1 else f"{label}/{seed}",
            settings=own,
        )


def _results(trained: Sequence[TestedModel], directory: Path) -> list[ModelResult]:
    """Returns each model's figures; fidelity is to the teacher of its seed, or to the only one."""
    teachers = {model.seed: model for model in trained if model.mode == "teacher"}
    only = next(iter(teachers.values()))
    return [_result(model, teachers.get(model.seed, only), directory) for model in trained]


def _result(trained: TestedModel, teacher: TestedModel, directory: Path) -> ModelResult:
    fidelity = None if trained is teacher else measure_fidelity(trained.logits, teacher.logits)
    return ModelResult(
        model=trained.mode,  # type: ignore[arg-type]
        seed=trained.seed,
        test_accuracy=trained.test.accuracy,
        test_cross_entropy=trained.test.cross_entropy,
        test_images=trained.test.images,
        test_errors=trained.test.errors,
        calibration_error=trained.test.calibration_error,
        fidelity=fidelity,
        parameters=trained.parameters,
        multiply_adds=trained.multiply_adds,
        seconds=trained.seconds,
        history=tuple(
            EpochPoint(row["epoch"], row["eval/accuracy"], row["eval/cross_entropy"])
            for row in trained.history
        ),
        correct=trained.test.correct,
        arch=short(trained.saved.card.arch),
        directory=str(trained.directory.relative_to(directory)) if trained.directory else None,
    )


def _file(comparison: Comparison, trained: Sequence[TestedModel], session: Session, directory: Path) -> None:
    """Writes the comparison's figures, logits, picture and page."""
    logits = {logits_key(one.mode, one.seed): one.logits for one in trained}
    labels = session.dataset.test.labels.astype(np.int64)
    save_tensors(directory / FILES["test_logits"], {**logits, "labels": labels}, {})
    for one, result in zip(trained, comparison.results, strict=True):
        if result.fidelity is not None:
            file_fidelity(one, result.fidelity)
    write_text(directory / "compare.json", json.dumps(to_json(comparison), indent=2) + "\n")
    picture = directory / FILES["picture"]
    save_figure(comparison_figure(comparison, title_extra=short(session.dataset.name)), picture)
    write_picture(directory, "comparison", picture)
    write_page(directory, session.dataset)


def write_page(directory: Path, dataset: Dataset) -> Path:
    """Writes a comparison's ``report.html`` from the files in its directory; returns the page's path.

    Raises:
        DataError: the data set's test labels are not those of the comparison.
        KdtrainError: a file is missing, damaged or of another version, or the page cannot be written.
    """
    config = load_config({}, directory / FILES["config"])
    return write_report(
        directory,
        dataset,
        settings=config.to_toml(),
        command=command(config),
        test_chose=count_validation(dataset, config) == 0,
    )
