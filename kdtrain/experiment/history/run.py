"""One run as ``kdtrain runs`` lists it, read from its files. No model is loaded."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any, TypeVar

import msgspec
import tomli

from kdtrain.errors import KdtrainError, escape_controls, os_reason
from kdtrain.experiment.settings.schema import DEFAULT_TEACHER
from kdtrain.metrics.names import ACCURACY
from kdtrain.runtime.regular_files import read_text
from kdtrain.store.metrics_file import NAME, read_metrics
from kdtrain.store.record import (
    COMPARISON,
    CONTROLS,
    FIT_MODES,
    RESULT,
    SEARCH,
    Comparison,
    FitRecord,
    Model,
    RunRecord,
    damage,
    read_record,
)
from kdtrain.store.run_directory import is_active
from kdtrain.store.search_record import Tuning

STATUSES = ("finished", "running", "interrupted", "failed", "damaged")
"""``damaged``: a file of the run cannot be read, or the directory holds no file of a run."""

RUN_FOLDERS = (*FIT_MODES, "tune")
"""Folders of the log directory that hold runs."""

CONFIG = "config.toml"
FILES = (RESULT, CONFIG, COMPARISON, SEARCH, NAME)
"""The files by which a directory is known as that of a run."""

_DISTILLED: Model = "student_kd"
_LARGEST = 1 << 16  # bytes of config.toml
_DEEPEST = 3  # folders between a run and one inside of it: tune/version_0/trials/MODEL_NUMBER/seed_0
_OTHERS = {"checkpoints", "cache", "models", "images"}  # folders that hold no runs

R = TypeVar("R", bound=RunRecord)


class RunSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What a list of runs tells of config.toml."""

    mode: str | None = None
    name: str | None = None
    seed: int | None = None
    dataset: str | None = None
    data_dir: str | None = None
    labels: str | None = None
    recipe: str | None = None
    teacher_arch: str | None = None
    student_arch: str | None = None
    plugin: tuple[str, ...] = ()
    val_size: int | None = None


@dataclass(frozen=True)
class Gain:
    """The gain by distillation in a comparison, in percentage points of test accuracy.

    Attributes:
        points: mean over the seeds, of the distilled student minus the plain one.
        low: lower end of the 95 % interval; None with one seed.
        high: upper end of the interval; None with one seed.
        seeds: number of seeds.
        outcome: helped, hurt or undecided.
    """

    points: float
    low: float | None
    high: float | None
    seeds: int
    outcome: str


@dataclass(frozen=True, kw_only=True)
class RunInfo:
    """A run in the log directory. A value is None where the files do not tell it.

    Attributes:
        directory: the run directory.
        run: its path within the log directory, or within the run that it is part of.
        name: the name that its settings give it.
        mode: teacher, student, student_kd, compare or tune.
        model: the mode, or the model's name in a comparison, such as student_ls.
        arch: the network; of a comparison the students'.
        dataset: the data set.
        data_dir: the folder that its files were read from.
        labels: how many training images have labels, as --labels says it; None for all.
        recipe: the recipe that the settings started from.
        plugins: the plugins.
        seed: the seed; of a comparison the first one.
        status: finished, running, interrupted, failed or damaged.
        reason: a sentence about a run that is not finished.
        changed: time of the latest change of its files, in seconds since 1970.
        epochs: number of epochs done.
        best_epoch: the epoch whose weights are the best.
        seconds: time of the training.
        parameters: number of trainable values.
        held_out_accuracy: 0 to 1, of the best epoch; of a comparison the distilled student's mean; None also
            where the test set chose the epoch (``val_size`` 0).
        test_accuracy: 0 to 1; of a comparison the distilled student's mean.
        test_errors: number of errors on the test set.
        test_images: number of test images.
        gain: the gain of a comparison.
        parts: the runs inside of a comparison or a search, and the teacher that a student_kd trained first.
    """

    directory: Path
    run: str
    name: str | None = None
    mode: str | None = None
    model: str | None = None
    arch: str | None = None
    dataset: str | None = None
    data_dir: str | None = None
    labels: str | None = None
    recipe: str | None = None
    plugins: tuple[str, ...] = ()
    seed: int | None = None
    status: str
    reason: str | None = None
    changed: float
    epochs: int | None = None
    best_epoch: int | None = None
    seconds: float | None = None
    parameters: int | None = None
    held_out_accuracy: float | None = None
    test_accuracy: float | None = None
    test_errors: int | None = None
    test_images: int | None = None
    gain: Gain | None = None
    parts: tuple[RunInfo, ...] = ()


def is_run(directory: Path) -> bool:
    """Returns whether a directory holds a file of a run."""
    return any(os.path.lexists(directory / name) for name in FILES)


def parts_of(directory: Path, depth: int = _DEEPEST) -> Iterator[Path]:
    """Yields the directories of the runs inside of a run, in the order of their names."""
    try:
        with os.scandir(directory) as entries:
            names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    except OSError:
        return
    for name in names:
        inside = directory / name
        if name in _OTHERS:
            continue
        if is_run(inside):
            yield inside
        elif depth > 1:
            yield from parts_of(inside, depth - 1)


def read_config(directory: Path) -> dict[str, Any]:
    """Returns the settings in a run's config.toml; empty if there is no such file.

    Raises:
        KdtrainError: the file cannot be read, or is no TOML.
    """
    file = directory / CONFIG
    try:
        return tomli.loads(read_text(file, _LARGEST))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise KdtrainError(f"{file} cannot be read: {os_reason(error)}.") from error
    except (ValueError, RecursionError) as error:  # not UTF-8, or no TOML
        raise KdtrainError(f"{file} is damaged: {str(error).splitlines()[0]}.") from error


def read_run(directory: Path, root: Path, *, parts: bool = False) -> RunInfo:
    """Returns what the files of a run tell; a damaged file makes it a damaged run, and is no error.

    Args:
        directory: the run directory.
        root: the log directory.
        parts: read the runs inside of it, too; otherwise only where its status depends on them.
    """
    return _Reader(directory, root, is_active(directory)).run(parts)


class _Reader:
    """The reading of one run directory.

    Args:
        directory: the run directory.
        root: the folder that ``run`` is relative to.
        active: whether a process works on it, or on the run that it is part of.
        is_part: whether it is part of another run.
    """

    def __init__(self, directory: Path, root: Path, active: bool, *, is_part: bool = False) -> None:
        self.directory, self.root, self.active, self.is_part = directory, root, active, is_part
        self.faults: list[str] = []  # a text for each file that is there and cannot be read
        self.config = self._settings()
        self.fit = self._record(FitRecord)

    def run(self, parts: bool) -> RunInfo:
        config, place = self.config, self.directory.parent.name
        # The config.toml of a search is that of a comparison.
        mode = "tune" if place == "tune" else None
        if mode is None:
            mode = (config.mode if config else None) or (self.fit.mode if self.fit else None)
        mode = mode or (place if place in RUN_FOLDERS else None)
        read = {"compare": self._comparison, "tune": self._search}.get(mode or "", self._fit)
        values = read(parts)
        if self.faults:
            values |= {"status": "damaged", "reason": "; ".join(self.faults)}
        elif config is None and self.fit is None and values["status"] == "interrupted":
            values |= {"status": "damaged", "reason": f"it holds neither {CONFIG} nor {RESULT}"}
        reason = values.get("reason")
        return RunInfo(
            directory=self.directory,
            run=escape_controls(str(self.directory.relative_to(self.root))),
            mode=mode,
            model=self.directory.name if self.is_part and self.directory.name in CONTROLS else mode,
            changed=self._changed(),
            **self._about(mode),
            **(values | {"reason": escape_controls(" ".join(reason.split())) if reason else None}),
        )

    def _record(self, kind: type[R]) -> R | None:
        try:
            return read_record(self.directory / kind.FILE, kind)
        except KdtrainError as error:
            self._add_fault(error)
            return None

    def _settings(self) -> RunSettings | None:
        try:
            content = read_config(self.directory)
            return msgspec.convert(content, RunSettings) if content else None
        except KdtrainError as error:
            self._add_fault(error)
        except msgspec.ValidationError as error:
            self.faults.append(f"{CONFIG} is damaged: {damage(error)}")
        return None

    def _add_fault(self, error: KdtrainError) -> None:
        text = str(error).removesuffix(" Fix it, or move it away.").rstrip(".")
        self.faults.append(text.replace(f"{self.directory}{os.sep}", ""))

    def _changed(self) -> float:
        """Returns the time of the latest change of its files, in seconds since 1970; 0 without files."""
        times = [0.0]
        for name in FILES:
            try:
                times.append((self.directory / name).stat().st_mtime)
            except OSError:
                continue
        return max(times)

    def _about(self, mode: str | None) -> dict[str, Any]:
        config = self.config or RunSettings()
        arch = config.student_arch
        if mode == "teacher":
            arch = config.teacher_arch or (DEFAULT_TEACHER if self.config else None)
        names = ("name", "dataset", "data_dir", "labels", "recipe")
        texts = {name: getattr(config, name) for name in names} | {"arch": arch}
        seed = None if self.fit is None else self.fit.seed
        return {name: escape_controls(text) if text else None for name, text in texts.items()} | {
            "plugins": config.plugin,
            "seed": config.seed if seed is None else seed,
        }

    def _fit(self, parts: bool) -> dict[str, Any]:
        """Returns the values of one network's run."""
        if self.fit is None and not self.is_part:
            inside = self._parts()
            if inside:
                return self._unfinished(inside) | {"parts": inside}
        values = self._status() | self._figures()
        return values | {"parts": self._parts() if parts and not self.is_part else ()}

    def _figures(self) -> dict[str, Any]:
        """Returns the figures in result.json, and of a run without them those in metrics.jsonl."""
        fit = self.fit
        values: dict[str, Any] = {}
        if fit is not None and fit.status != "running":
            values = {"epochs": fit.epochs, "seconds": fit.seconds}
        if fit is not None and fit.result is not None:
            values |= {
                "best_epoch": fit.result.best_epoch,
                "parameters": fit.result.parameters,
                "test_accuracy": fit.result.accuracy,
                "test_errors": fit.result.errors,
                "test_images": fit.result.images,
                "held_out_accuracy": fit.result.held_out_accuracy,
            }
        elif rows := self._rows():
            accuracies = [row[ACCURACY] for row in rows]
            values |= {"epochs": rows[-1]["epoch"], "held_out_accuracy": max(accuracies)}
        return values | self._unless_test_chose(values.get("held_out_accuracy"))

    def _unless_test_chose(self, accuracy: float | None) -> dict[str, Any]:
        test_chose = self.config is not None and self.config.val_size == 0
        return {"held_out_accuracy": None if test_chose else accuracy}

    def _rows(self) -> list[dict[str, Any]]:
        try:
            return read_metrics(self.directory)
        except KdtrainError as error:
            self._add_fault(error)
            return []

    def _status(self) -> dict[str, Any]:
        status, reason = (None, None) if self.fit is None else (self.fit.status, self.fit.reason)
        if self.fit is not None and self.fit.is_trained:
            if self.is_part or self.fit.models:
                return {"status": "finished", "reason": reason}
            reason = "trained, but not tested"
        if status == "failed":
            return {"status": "failed", "reason": reason}
        if self.active:
            return {"status": "running"}
        if status == "running":
            reason = "its process was killed"
        return {"status": "interrupted", "reason": reason}

    def _comparison(self, parts: bool) -> dict[str, Any]:
        compared = self._record(Comparison)
        finished = compared is not None and not self.active
        inside = self._parts() if parts or not finished else ()
        values: dict[str, Any] = {"status": "finished"} if finished else self._unfinished(inside)
        values["parts"] = inside if parts else ()
        if compared is None:
            return values
        distilled, difference = compared.summaries[_DISTILLED], compared.distillation
        held_out = [model.held_out_accuracy for model in compared.models if model.model == _DISTILLED]
        known = [accuracy for accuracy in held_out if accuracy is not None]
        gain = difference.gain
        return values | {
            "test_accuracy": distilled.accuracy.mean / 100,
            "test_images": compared.test_images,
            "parameters": distilled.parameters,
            "gain": Gain(gain.mean, gain.low, gain.high, gain.n, difference.outcome),
            **self._unless_test_chose(mean(known) if known else None),
        }

    def _search(self, parts: bool) -> dict[str, Any]:
        search = self._record(Tuning)
        status = "running" if self.active else "interrupted"
        if search is not None and search.finished and not self.active:
            status = "finished"
        values: dict[str, Any] = {"status": status, "parts": self._parts() if parts else ()}
        if search is not None:
            values["seconds"] = search.seconds
            student = search.students.get(_DISTILLED)
            if student is not None and student.ranking:
                values["held_out_accuracy"] = student.best.rungs[-1].accuracy
        return values

    def _unfinished(self, inside: Sequence[RunInfo]) -> dict[str, Any]:
        """Returns the status of a run that is not finished, by the runs inside of it."""
        if self.active:
            return {"status": "running"}
        for status in ("failed", "damaged", "interrupted"):
            for part in inside:
                if part.status == status and part.reason:
                    return {
                        "status": "interrupted" if status == "damaged" else status,
                        "reason": f"{part.run}: {part.reason}",
                    }
        return {"status": "interrupted"}

    def _parts(self) -> tuple[RunInfo, ...]:
        directory = self.directory
        readers = (_Reader(part, directory, self.active, is_part=True) for part in parts_of(directory))
        return tuple(reader.run(parts=False) for reader in readers)
