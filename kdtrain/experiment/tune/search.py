"""The search of ``kdtrain tune``: a teacher, then trials of every student, rung by rung; and its result."""

from __future__ import annotations

import itertools
import logging
import operator
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import structs

from kdtrain.errors import KdtrainError, UsageError, escape_controls
from kdtrain.experiment.dry_run import dry_run
from kdtrain.experiment.fit import FitSpec
from kdtrain.experiment.loaders import count_training, count_validation
from kdtrain.experiment.modes import MODES
from kdtrain.experiment.result import facts_of
from kdtrain.experiment.session import Session, measured
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import absolute_paths, without_folders
from kdtrain.experiment.settings.schema import flag_of
from kdtrain.experiment.teachers.find import TrainedTeacher, describe_teacher, find_teacher, trained_here
from kdtrain.experiment.tune.halving import (
    DEFAULT_BUDGET,
    Pace,
    affordable_trials,
    best_first,
    parse_budget,
    rung_epochs,
    rung_sizes,
)
from kdtrain.experiment.tune.space import VIEWS, Values, spaces
from kdtrain.experiment.tune.trial import Row, is_trained, rows_until, rung_score, train_quietly
from kdtrain.experiment.warm_start import announce_first_weights
from kdtrain.report.page.tuning import write_tuning_page
from kdtrain.report.tuning import CAVEAT, behind_text, early_end_text, values_text, verdict
from kdtrain.runtime.bars import command_bar, count_epochs, expect_epochs
from kdtrain.runtime.files import make_folder, write_text
from kdtrain.runtime.limits import MOST_TRIALS
from kdtrain.runtime.locations import command_name, short_name
from kdtrain.runtime.processes import Job, available_cores
from kdtrain.runtime.value_checks import between, check_value
from kdtrain.store.record import SEARCH, Model, read_record, write_record
from kdtrain.store.run_directory import run_directory
from kdtrain.store.search_record import RungScore, TunedModel, TunedTrial, Tuning

logger = logging.getLogger(__name__)

BEST = "best.toml"
"""The settings that were chosen, as --config takes them."""

_TEACHER = "teacher"  # folder of the search's own teacher
_SEEDS = between(1, 100)


@dataclass(frozen=True, eq=False, repr=False)
class TuneRun:
    """A finished search and its files.

    Attributes:
        tuning: trials and choice of each model.
        directory: the run directory.
    """

    tuning: Tuning
    directory: Path

    @property
    def best(self) -> Path:
        """The settings that were chosen, as the argument ``config`` of ``compare`` takes them."""
        return self.directory / BEST

    @property
    def settings(self) -> dict[str, Mapping[str, Any]]:
        """The settings that were chosen, by model."""
        return {model: result.settings for model, result in self.tuning.students.items()}

    @property
    def report(self) -> Path:
        """The page with all trials."""
        return self.directory / "report.html"

    @property
    def figures(self) -> Path:
        """The trials as JSON."""
        return self.directory / SEARCH

    @property
    def sentences(self) -> tuple[str, ...]:
        """What the search shows, as the command line prints it."""
        return self.tuning.sentences

    def __repr__(self) -> str:
        return f"<TuneRun {verdict(self.tuning)[:-1]} ({self.directory})>"


def run_tune(
    config: FitConfig,
    resume: Path | None,
    *,
    budget: str | None = None,
    search: Sequence[str] | None = None,
    tune_seeds: int | None = None,
) -> TuneRun:
    """Chooses settings for every student on held-out images; the test set is not read.

    The run directory gets ``tune.json``, ``best.toml``, ``report.html``, and a run directory for each trial
    and seed.

    Args:
        config: configuration of the search.
        resume: directory of the search to resume; None for a new one.
        budget: minutes for everything or number of trials, as ``--budget`` takes them.
        search: values to choose from, as ``--search`` takes them.
        tune_seeds: number of seeds that each trial is trained with.

    Raises:
        UsageError: a value is not allowed, or does not go with a search that is resumed; or no images are
            held out.
        KdtrainError: every trial of a model has failed.
    """
    begun = _begun({"budget": budget, "search": search, "tune_seeds": tune_seeds}, resume)
    try:
        _check_values(config, begun)
    except UsageError as error:
        raise error if resume is None else UsageError(f"{resume / SEARCH}: {error}") from error
    session = Session.open(config)
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
    dry_run(config, session.dataset, teacher)
    with (
        run_directory(config.logdir, "tune", resume, config.name, command="tune") as directory,
        command_bar(),
    ):
        if resume is None:
            write_text(directory / "config.toml", absolute_paths(config).to_toml())
        begun = structs.replace(begun, **facts_of(config, session.dataset))
        # A search tells nothing of the test set, so not of its copies either.
        begun = structs.replace(begun, conditions=structs.replace(begun.conditions, copies=None))
        under_way = _Search(session, begun, directory, began)
        under_way.write()
        try:
            return TuneRun(under_way.run(teacher or _train_teacher(session, directory)), directory)
        except BaseException:
            under_way.write()  # the time that it has taken
            raise


def _begun(given: Mapping[str, Any], resume: Path | None) -> Tuning:
    """Returns a new search, or the one that is resumed, with its state."""
    if resume is not None:
        for name, value in given.items():
            if value is not None:
                raise UsageError(
                    f"{flag_of(name)}: a resumed search keeps its own. Leave the flag out, or start a new "
                    "search."
                )
        return begun_search(resume)
    seeds = 1 if given["tune_seeds"] is None else given["tune_seeds"]
    check_value("--tune-seeds", seeds, _SEEDS)
    budget = DEFAULT_BUDGET if given["budget"] is None else str(given["budget"])
    parse_budget(budget)
    return Tuning(mode="tune", budget=budget, searches=tuple(given["search"] or ()), seeds=seeds)


def begun_search(directory: Path) -> Tuning:
    """Returns a search as it was left, without its trials; their run directories have these.

    Raises:
        KdtrainError: the file is missing or damaged.
    """
    file = directory / SEARCH
    try:
        search = read_record(file, Tuning)
        if search is None:
            raise KdtrainError(f"{file} is not there.")
        try:
            parse_budget(search.budget, "budget")
        except UsageError as error:
            raise KdtrainError(f"{file} is damaged: {error}") from error
    except KdtrainError as error:
        raise KdtrainError(f"{error} Start a new search.") from error
    return structs.replace(search, students={}, note="", finished=False)


def _check_values(config: FitConfig, settings: Tuning) -> None:
    """Checks the values of all trials before any work is done.

    Raises:
        UsageError: a search names nothing that can be tuned, or values that do not go together.
    """
    trials = parse_budget(settings.budget).trials or MOST_TRIALS
    for model, space in spaces(config, settings.searches).items():
        for values in space.points(trials, config.seed):
            try:
                replace(config, **space.settings(values))
            except UsageError as error:
                raise UsageError(f"{model} with {values_text(values)}: {error}") from error


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
        is_finite: the space of each student has at most as many combinations as there are trials, so that
            all are trained to the end.
    """

    def __init__(self, session: Session, begun: Tuning, directory: Path, began: float) -> None:
        self.session, self.directory, self.tuning = session, directory, begun
        self.config = session.config
        self.budget = parse_budget(begun.budget)
        self.spaces = spaces(self.config, begun.searches)
        most = self.budget.trials or 0  # with a limit of time, it decides how long trials are trained
        self.is_finite = all(space.combinations(most) for space in self.spaces.values())
        epochs = self.config.epochs_for("student")
        self.whole = (epochs,) if self.is_finite else rung_epochs(epochs)
        last = min(begun.last_epoch or self.whole[-1], self.whole[-1])
        self.ends = (*(end for end in self.whole if end < last), last)
        self.seeds = range(self.config.seed, self.config.seed + begun.seeds)
        self.points: dict[Model, list[Values]] = {m: [s.current()] for m, s in self.spaces.items()}
        self.scores: dict[Model, dict[int, list[RungScore]]] = {model: {} for model in self.spaces}
        slots = len(available_cores()) if session.device == "cpu" else 1
        self.pace = Pace(begun.seconds_per_epoch, len(self.spaces) * len(self.seeds), slots)
        self._began = began - begun.seconds
        self.teacher: TrainedTeacher | None = None
        self._is_behind = False  # whether the line about it has been printed

    def run(self, teacher: TrainedTeacher) -> Tuning:
        """Trains the trials, rung by rung, and returns the result."""
        self.teacher = teacher = measured(self.session, teacher)
        # A resumed search reads it, so all trials get it: their settings stay the same.
        self.config = teacher.named_in(self.config)
        self.session = self.session.with_config(self.config)
        write_text(self.directory / "config.toml", absolute_paths(self.config).to_toml())
        self._prepare_soft_labels(teacher)
        trials = self._first_size()
        self.points = {model: space.points(trials, self.config.seed) for model, space in self.spaces.items()}
        if self.is_finite:
            trials = max(map(len, self.points.values()))
        for rung, wanted in enumerate(rung_sizes(trials, len(self.ends))):
            size = self._size(rung, wanted)
            if size == 0:
                break
            self.tuning = structs.replace(self.tuning, sizes=(*self.tuning.sizes[:rung], size))
            self.write()
            self._expect_epochs(rung, size)
            self._train_rung(rung, size)
        self.tuning = structs.replace(self.tuning, finished=True)
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

    def _expect_epochs(self, rung: int, size: int) -> None:
        """Announces the epochs of a rung with ``size`` trials of each model, and of those after it."""
        sizes = rung_sizes(size, len(self.ends) - rung)
        steps = [end - begun for begun, end in itertools.pairwise((0, *self.ends))][rung:]
        expect_epochs(len(self.spaces) * len(self.seeds) * sum(map(operator.mul, sizes, steps)))

    def write(self) -> None:
        """Writes tune.json, which a resumed search begins with; says once that the teacher is behind."""
        self.tuning = structs.replace(
            self.tuning,
            seconds=time.monotonic() - self._began,
            seconds_per_epoch=self.pace.seconds,
            students=self._students() if all(self.scores.values()) else {},
        )
        behind = self._behind_text()
        notes = early_end_text(self.tuning, self.whole), behind
        self.tuning = structs.replace(self.tuning, note=" ".join(filter(None, notes)))
        if self.tuning.finished:
            shown = (f"{verdict(self.tuning)} {CAVEAT}", *filter(None, [self.tuning.note]))
            self.tuning = structs.replace(self.tuning, sentences=shown)
        write_record(self.directory, self.tuning)
        if behind and not self._is_behind:
            self._is_behind = True
            logger.info(behind)

    def _prepare_soft_labels(self, teacher: TrainedTeacher) -> None:
        """Computes the teacher's soft labels over the images that trials see, with views and without."""
        teachers = dict.fromkeys(self.seeds, teacher)
        without_views = replace(self.session.config, augment="none")
        has_views = any(VIEWS in space.dimensions for space in self.spaces.values())
        for config in (self.session.config, *([without_views] if has_views else [])):
            session = self.session.with_config(config)
            session.run(session.soft_label_jobs(teachers))

    def _first_size(self) -> int:
        """Returns the number of trials of each model; with a limit of time, measures the first trial."""
        if self.budget.trials is not None:
            return self.budget.trials
        if self.tuning.sizes:
            return self.tuning.sizes[0]
        logger.info("The first trial, with the command's own settings, shows how many the time allows.")
        self._train({model: [0] for model in self.spaces}, self.ends[0])
        self.write()
        left = self._seconds_left() + self.pace.rung_seconds(1, self.ends[0])  # this trial is one of them
        return max(1, affordable_trials(MOST_TRIALS, self.ends, 0, left, self.pace))

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
        self.tuning = structs.replace(self.tuning, last_epoch=last)
        logger.info(early_end_text(self.tuning, self.whole))
        if last == done:
            return 0
        self.ends = (*self.ends[:rung], last)
        return max(1, affordable_trials(wanted, (last,), done, left, self.pace))

    def _train_rung(self, rung: int, size: int) -> None:
        end = self.ends[rung]
        if self.is_finite:
            for model, points in self.points.items():
                count = f"{len(points)} combinations, each" if len(points) > 1 else "no choice,"
                logger.info(f"{model}: {count} trained to the end.")
        else:
            logger.info(
                f"Rung {rung + 1} of {len(self.ends)}, to epoch {end}: {size} trial{'s' * (size != 1)} of "
                f"each of {', '.join(self.spaces)}."
            )
        going = {model: self._order(model, rung)[:size] for model in self.spaces}
        self._train(going, end)
        for model in self.spaces:
            if not self._order(model, rung + 1):
                raise KdtrainError(
                    f"every trial of {model} has failed, because its loss became infinite or NaN. "
                    "Give lower values, such as --search lr=1e-4..1e-3."
                )
        self.write()

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
        jobs = [self._job(specs[key]) for key in waiting]
        begun = max((earlier for earlier in self.ends if earlier < end), default=0)
        # A fit that goes on skips the epochs before this rung, which nobody expects.
        count_epochs(skipped=end * (len(specs) - len(waiting)) - begun * len(specs))
        if jobs:
            began = time.monotonic()
            rows |= zip(waiting, self.session.run(jobs, peers=len(specs)), strict=True)
            self.pace = self.pace.measured(time.monotonic() - began, len(jobs), end - begun)
        for model, numbers in going.items():
            for number in numbers:
                of_seeds = [rows[model, number, seed] for seed in self.seeds]
                score = rung_score(of_seeds, end) if all(of_seeds) else None
                earlier = [rung for rung in self.scores[model].get(number, []) if rung.epochs < end]
                self.scores[model][number] = [*earlier, *([] if score is None else [score])]

    def _spec(self, model: Model, number: int, seed: int, end: int) -> FitSpec:
        """Returns the fit of a trial up to the epoch ``end``."""
        mode = MODES[model]
        directory = self.directory / "trials" / f"{model}_{number}" / f"seed_{seed}"
        of_trial = self.spaces[model].settings(self.points[model][number])
        return FitSpec(
            mode=mode.fit,
            seed=seed,
            directory=directory,
            teacher=self.teacher if mode.has_teacher else None,
            label=f"{model} trial {number}" + (f"/{seed}" if len(self.seeds) > 1 else ""),
            settings={**of_trial, "epochs": end, "early_stopping": None},
            restarts=self.ends,
        )

    def _job(self, spec: FitSpec) -> Job[list[Row]]:
        job = self.session.fit_job(spec)
        return Job(job.name, partial(train_quietly, job.work, spec), job.cores)

    def _students(self) -> dict[Model, TunedModel]:
        students = {}
        for model, space in self.spaces.items():
            trials = tuple(
                TunedTrial(number, self.points[model][number], tuple(rungs))
                for number, rungs in sorted(self.scores[model].items())
            )
            result = TunedModel(trials)
            if not result.ranking:
                return {}
            settings = replace(space, config=absolute_paths(self.config)).settings(result.best.values)
            students[model] = TunedModel(trials, settings, result.best.number)
        return students

    def _best_toml(self, with_paths: Callable[[FitConfig], FitConfig] = absolute_paths) -> str:
        """Returns the settings of the best student_kd, with a pointer to those of all students."""
        dataset = self.session.dataset
        images, held_out = count_training(dataset, self.config), count_validation(dataset, self.config)
        name = " ".join(escape_controls(dataset.name).split())  # a comment has one line
        comments = [
            "# Settings that `kdtrain tune` has chosen by held-out images, for `kdtrain fit --config`.",
            f"# They were chosen on {name}: {images:,} training images, {held_out:,} held out.",
            "# The values below are those of student_kd. `tuned` names the file with those of each student.",
        ]
        for model, result in self.tuning.students.items():
            comments.append(f"# {model}, trial {result.best.number}: {values_text(result.best.values)}")
        chosen = replace(
            self.config,
            teacher_augment=self.config.augment_for("teacher"),
            tuned=self.directory / SEARCH,
            name=None,
            **self.tuning.students["student_kd"].settings,
        )
        return "\n".join(comments) + "\n\n" + with_paths(chosen).to_toml()

    def _seconds_left(self) -> float:
        assert self.budget.seconds is not None
        return self.budget.seconds - (time.monotonic() - self._began)
