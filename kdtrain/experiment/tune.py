"""The search of ``kdtrain tune``: a teacher, then trials of every student by successive halving."""

from __future__ import annotations

import copy
import json
import logging
import shlex
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

from kdtrain.errors import KdtrainError, UsageError, escape_controls
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.config_file import absolute_paths, without_folders
from kdtrain.experiment.fit_spec import FitSpec
from kdtrain.experiment.halving import (
    Pace,
    affordable_trials,
    best_first,
    parse_budget,
    rung_epochs,
    rung_sizes,
)
from kdtrain.experiment.loaders import count_training, count_validation
from kdtrain.experiment.modes import COMPARED, MODES
from kdtrain.experiment.rehearsal import rehearse
from kdtrain.experiment.search_space import VIEWS, Values, spaces
from kdtrain.experiment.session import Session
from kdtrain.experiment.teacher import TrainedTeacher, describe_teacher, find_teacher, trained_here
from kdtrain.experiment.teacher_figures import measured
from kdtrain.experiment.tune_trial import Row, is_trained, rows_until, rung_score, train_quietly
from kdtrain.experiment.warm_start import announce_first_weights
from kdtrain.report.comparison import Model
from kdtrain.report.page.tuning import write_tuning_page
from kdtrain.report.tuning import (
    FILE,
    RungScore,
    TunedModel,
    TunedTrial,
    Tuning,
    behind_text,
    early_end_text,
    to_json,
    values_text,
)
from kdtrain.runtime import time_left
from kdtrain.runtime.files import make_folder, write_text
from kdtrain.runtime.limits import MOST_COMBINATIONS
from kdtrain.runtime.locations import command_name, short_name
from kdtrain.runtime.processes import Job, available_cores
from kdtrain.store.run_directory import run_directory

logger = logging.getLogger(__name__)

BEST = "best.toml"
"""The settings that were chosen, as --config takes them."""

_TEACHER = "teacher"  # folder of the search's own teacher


def check_order(config: FitConfig, order: Tuning) -> None:
    """Checks the order of a search before any work is done.

    Args:
        config: configuration of the command.
        order: budget and searches.

    Raises:
        UsageError: a search names nothing that can be tuned, or values that do not go together.
    """
    trials = parse_budget(order.budget).trials or MOST_COMBINATIONS
    for model, space in spaces(config, order.searches).items():
        for values in space.points(trials, config.seed):
            try:
                replace(config, **space.settings(values))
            except UsageError as error:
                raise UsageError(f"{model} with {values_text(values)}: {error}") from error


def run_tuning(session: Session, order: Tuning, resume: Path | None = None) -> tuple[Tuning, Path]:
    """Chooses the settings of every student on held-out images; returns the result and its directory.

    The test set is not read. The directory gets ``tune.json``, ``best.toml``, ``report.html``, and a run
    directory for each trial and seed.

    Args:
        session: configuration, data and jobs.
        order: budget, searches and seeds; of a resumed search, also its state.
        resume: directory of a search to resume.

    Raises:
        UsageError: no images are held out.
        KdtrainError: every trial of a model has failed.
    """
    config = session.config
    if count_validation(session.dataset, config) == 0:
        raise UsageError(
            f"`kdtrain tune` chooses by held-out images, and {session.dataset.name} leaves none."
        )
    began = time.monotonic()
    teacher = None
    if resume is None or config.has_teacher_files or not (resume / _TEACHER).is_dir():
        teacher = find_teacher(config, session.dataset, session.ranks)
    if teacher is not None:
        logger.info(describe_teacher(teacher, config, session.dataset))
    if resume is None:
        announce_first_weights(config, session.dataset)
    rehearse(config, session.dataset, teacher)
    with run_directory(config.logdir, "tune", resume, config.name, command="tune") as directory:
        search = _Search(session, order, directory, began)
        search.write()
        try:
            search.plan(has_teacher=teacher is not None)
            return search.run(teacher or _train_teacher(session, directory)), directory
        except BaseException:
            search.write()  # the time that it has taken
            raise


def _train_teacher(session: Session, directory: Path) -> TrainedTeacher:
    """Trains the search's own teacher, or resumes its training; the test set is not read."""
    config = session.config
    logger.info(f"There is no teacher for {session.dataset.name} in {config.models} yet: training one first.")
    make_folder(directory / _TEACHER)  # --resume recognises an own teacher by it
    [fitted] = session.run([session.fit_job(_teacher_spec(session, directory))])
    return trained_here(fitted.saved)


def _teacher_spec(session: Session, directory: Path) -> FitSpec:
    return FitSpec("teacher", session.config.seed, directory / _TEACHER)


def next_command(directory: Path) -> str:
    """Returns the command that compares the tuned students."""
    return f"{command_name()} fit --mode compare --config {shlex.quote(str(directory / BEST))}"


class _Search:
    """A search under way.

    Attributes:
        tuning: what is known so far; ``write`` writes it.
    """

    def __init__(self, session: Session, order: Tuning, directory: Path, began: float) -> None:
        self.session, self.directory, self.tuning = session, directory, order
        self.config = session.config
        self.budget = parse_budget(order.budget)
        self.whole = rung_epochs(self.config.epochs_for("student"))
        last = min(order.last_epoch or self.whole[-1], self.whole[-1])
        self.ends = (*(end for end in self.whole if end < last), last)
        self.seeds = range(self.config.seed, self.config.seed + order.seeds)
        self.spaces = spaces(self.config, order.searches)
        self.points: dict[Model, list[Values]] = {m: [s.current()] for m, s in self.spaces.items()}
        self.scores: dict[Model, dict[int, list[RungScore]]] = {model: {} for model in self.spaces}
        slots = len(available_cores()) if session.device == "cpu" else 1
        self.pace = Pace(order.seconds_per_epoch, len(self.spaces) * order.seeds, slots)
        self._began = began - order.seconds
        self.teacher: TrainedTeacher | None = None
        self._is_behind = False  # whether the line about it has been printed

    def run(self, teacher: TrainedTeacher) -> Tuning:
        """Trains the trials, rung by rung, and returns the result."""
        self.teacher = teacher = measured(self.session, teacher)
        # A resumed search reads it, so all trials get it: their settings stay the same.
        self.session.config = self.config = teacher.named_in(self.config)
        write_text(self.directory / "config.toml", absolute_paths(self.config).to_toml())
        self._prepare_soft_labels(teacher)
        trials = self._first_size()
        self.points = {model: space.points(trials, self.config.seed) for model, space in self.spaces.items()}
        self.plan(trials)
        for rung, wanted in enumerate(rung_sizes(trials, len(self.ends))):
            size = self._size(rung, wanted)
            if size == 0:
                break
            self.tuning = replace(self.tuning, sizes=(*self.tuning.sizes[:rung], size))
            self.write()
            self._train_rung(rung, size)
        self.tuning = replace(self.tuning, finished=True)
        self.write()
        write_text(self.directory / BEST, self._best_toml())
        write_tuning_page(
            self.directory,
            self.tuning,
            dataset=short_name(self.session.dataset.name),
            settings=self._best_toml(without_folders),
            command=next_command(Path()),
        )
        return self.tuning

    def plan(self, trials: int | None = None, *, has_teacher: bool = True) -> None:
        """Announces the fits, for the time left; ``trials`` is the number in the first rung, if known.

        Their keys are numbers within a rung, because the promoted trials are not known yet.
        """
        seconds, trials = self.budget.seconds, trials or self.budget.trials
        stages = [] if has_teacher else [[_teacher_spec(self.session, self.directory)]]
        begun = [0] * len(stages)
        for rung, size in enumerate(rung_sizes(trials, len(self.ends)) if trials else ()):
            end = self.ends[rung]
            begun.append(self.ends[rung - 1] if rung else 0)
            specs = [
                self._spec(model, 0, seed, end)
                for _ in range(size)
                for model in self.spaces
                for seed in self.seeds
            ]
            fits = enumerate(specs)
            stages.append([replace(spec, directory=Path(f"{end}/{number}")) for number, spec in fits])
        self.session.plan(stages, begun, None if seconds is None else self._began + seconds)

    def write(self) -> None:
        """Writes tune.json, which a resumed search begins with."""
        self.tuning = replace(
            self.tuning,
            seconds=self._seconds(),
            seconds_per_epoch=self.pace.seconds,
            models=self._models() if all(self.scores.values()) else {},
        )
        notes = early_end_text(self.tuning, self.whole), self._behind_text()
        self.tuning = replace(self.tuning, note=" ".join(filter(None, notes)))
        if not (self.directory / "config.toml").exists():
            write_text(self.directory / "config.toml", absolute_paths(self.config).to_toml())
        write_text(self.directory / FILE, json.dumps(to_json(self.tuning), indent=2) + "\n")

    def _prepare_soft_labels(self, teacher: TrainedTeacher) -> None:
        """Computes the teacher's soft labels over the images that trials see, with views and without."""
        teachers = dict.fromkeys(self.seeds, teacher)
        without_views = replace(self.session.config, augment="none")
        has_views = any(VIEWS in space.dimensions for space in self.spaces.values())
        for config in (self.session.config, *([without_views] if has_views else [])):
            session = copy.copy(self.session)
            session.config = config
            session.run(session.soft_label_jobs(teachers))

    def _first_size(self) -> int:
        """Returns the number of trials of each model; with a limit of time, measures the first trial."""
        if self.budget.trials is not None:
            return self.budget.trials
        if self.tuning.sizes:
            return self.tuning.sizes[0]
        logger.info("The first trial, with the command's own settings, shows how many the time allows.")
        self._train({model: [0] for model in self.spaces}, self.ends[0])
        self._write_scores()
        left = self._seconds_left() + self.pace.rung_seconds(1, self.ends[0])  # this trial is one of them
        return max(1, affordable_trials(MOST_COMBINATIONS, self.ends, 0, left, self.pace))

    def _size(self, rung: int, wanted: int) -> int:
        """Returns the number of trials of a rung: as many as wanted, or as the time allows.

        A rung that would not end in time is the last, and as long as the time left: 0 without an epoch.
        """
        if rung >= len(self.ends):
            return 0
        if rung < len(self.tuning.sizes):
            return self.tuning.sizes[rung]
        if rung == 0 or self.budget.seconds is None or self.pace.seconds == 0:
            return wanted
        ends = self.ends[rung:]
        done, left = self.ends[rung - 1], self._seconds_left()
        if size := affordable_trials(wanted, ends, done, left, self.pace):
            return size
        epochs = max(0, int(left // self.pace.rung_seconds(1, 1)))
        last = min(done + epochs, ends[0] - 1)
        self.tuning = replace(self.tuning, last_epoch=last)
        logger.info(early_end_text(self.tuning, self.whole))
        if last == done:
            return 0
        self.ends = (*self.ends[:rung], last)
        return max(1, affordable_trials(wanted, (last,), done, left, self.pace))

    def _train_rung(self, rung: int, size: int) -> None:
        end = self.ends[rung]
        logger.info(
            f"Rung {rung + 1} of {len(self.ends)}, to epoch {end}: {size} trial{'s' * (size != 1)} of each "
            f"of {', '.join(self.spaces)}."
        )
        going = {model: self._order(model, rung)[:size] for model in self.spaces}
        self._train(going, end)
        for model in self.spaces:
            if not self._order(model, rung + 1):
                raise KdtrainError(
                    f"every trial of {model} has failed, because its loss became infinite or NaN. "
                    "Give lower values, such as --search lr=1e-4..1e-3."
                )
        self._write_scores()

    def _write_scores(self) -> None:
        """Writes tune.json after new scores, and says once that the teacher is behind the plain student."""
        self.write()
        if (note := self._behind_text()) and not self._is_behind:
            self._is_behind = True
            logger.info(note)

    def _behind_text(self) -> str:
        figures = self.teacher and self.teacher.figures
        return behind_text(self.tuning, figures.accuracy if figures else None)

    def _order(self, model: Model, rung: int) -> list[int]:
        """Returns the trials that have finished the rungs before ``rung``, the best first."""
        if rung == 0:
            return list(range(len(self.points[model])))
        return best_first({n: rungs[-1] for n, rungs in self.scores[model].items() if len(rungs) == rung})

    def _train(self, going: Mapping[Model, list[int]], end: int) -> None:
        """Trains trials up to the epoch ``end``, and records their scores.

        Runs that have been there already are not started again.
        """
        specs = {
            (model, number, seed): self._spec(model, number, seed, end)
            for number in sorted({number for numbers in going.values() for number in numbers})
            for model, numbers in going.items()
            if number in numbers
            for seed in self.seeds
        }
        rows = {key: rows_until(spec.directory, end) for key, spec in specs.items()}
        waiting = [key for key, spec in specs.items() if not is_trained(spec.directory, end)]
        jobs = [self._job(specs[key], f"{end}/{number}") for number, key in enumerate(waiting)]
        time_left.skip(f"{end}/{number}" for number in range(len(waiting), len(specs)))
        if jobs:
            began = time.monotonic()
            rows |= zip(waiting, self.session.run(jobs, peers=len(specs)), strict=True)
            begun = max((earlier for earlier in self.ends if earlier < end), default=0)
            self.pace = self.pace.measured(time.monotonic() - began, len(jobs), end - begun)
        for model, numbers in going.items():
            for number in numbers:
                of_seeds = [rows[model, number, seed] for seed in self.seeds]
                score = rung_score(of_seeds, end) if all(of_seeds) else None
                earlier = [rung for rung in self.scores[model].get(number, []) if rung.epochs < end]
                self.scores[model][number] = [*earlier, *([] if score is None else [score])]

    def _spec(self, model: Model, number: int, seed: int, end: int) -> FitSpec:
        """Returns the fit of a trial up to the epoch ``end``."""
        mode, _ = COMPARED[model]
        directory = self.directory / "trials" / f"{model}_{number}" / f"seed_{seed}"
        of_trial = self.spaces[model].settings(self.points[model][number])
        return FitSpec(
            mode=mode,
            seed=seed,
            directory=directory,
            teacher=self.teacher if MODES[mode].has_teacher else None,
            label=f"{model} trial {number}" + (f"/{seed}" if len(self.seeds) > 1 else ""),
            settings={**of_trial, "epochs": end, "early_stopping": None},
            restarts=self.ends,
        )

    def _job(self, spec: FitSpec, key: str) -> Job[list[Row]]:
        job = self.session.fit_job(spec)
        return Job(job.name, partial(train_quietly, job.work, spec), job.cores, key)

    def _models(self) -> dict[Model, TunedModel]:
        models = {}
        for model, space in self.spaces.items():
            trials = tuple(
                TunedTrial(number, self.points[model][number], tuple(rungs))
                for number, rungs in sorted(self.scores[model].items())
            )
            result = TunedModel(trials, {})
            if not result.ranking:
                return {}
            space = replace(space, config=absolute_paths(self.config))
            models[model] = replace(result, settings=space.settings(result.best.values))
        return models

    def _best_toml(self, with_paths: Callable[[FitConfig], FitConfig] = absolute_paths) -> str:
        """Returns the settings of the best student_kd, with a pointer to those of all students."""
        dataset, images = self.session.dataset, count_training(self.session.dataset, self.config)
        held_out = count_validation(dataset, self.config)
        name = " ".join(escape_controls(dataset.name).split())  # a comment has one line
        data = f"{name}: {images:,} training images, {held_out:,} held out"
        comments = [
            "# Settings that `kdtrain tune` has chosen by held-out images, for `kdtrain fit --config`.",
            f"# They were chosen on {data}.",
            "# The values below are those of student_kd. `tuned` names the file with those of each student.",
        ]
        for model, result in self.tuning.models.items():
            comments.append(f"# {model}, trial {result.best.number}: {values_text(result.best.values)}")
        chosen = replace(
            self.config,
            teacher_augment=self.config.augment_for("teacher"),
            tuned=self.directory / FILE,
            name=None,
            **self.tuning.models["student_kd"].settings,
        )
        return "\n".join(comments) + "\n\n" + with_paths(chosen).to_toml()

    def _seconds(self) -> float:
        return time.monotonic() - self._began

    def _seconds_left(self) -> float:
        assert self.budget.seconds is not None
        return self.budget.seconds - self._seconds()
