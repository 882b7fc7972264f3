"""One run as ``kdtrain runs`` lists it, read from its files. No model is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from kdtrain.errors import escape_controls
from kdtrain.experiment.history.files import (
    COMPARISON,
    CONFIG,
    RESULT,
    SEARCH,
    RunFiles,
    at,
    held_out_accuracy,
    number,
    text,
    whole,
)
from kdtrain.experiment.settings.schema import DEFAULT_TEACHER
from kdtrain.store.record import CONTROLS, FIT_MODES
from kdtrain.store.run_directory import is_active

STATUSES = ("finished", "running", "interrupted", "failed", "damaged")
"""``damaged``: a file of the run cannot be read, or the directory holds no file of a run."""

RUN_FOLDERS = (*FIT_MODES, "tune")
"""Folders of the log directory that hold runs."""

_DISTILLED = "student_kd"


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
        self.files = RunFiles(directory)
        self.root, self.active, self.is_part = root, active, is_part
        self.config = self.files.toml(CONFIG)
        self.result = self.files.json(RESULT)

    def run(self, parts: bool) -> RunInfo:
        directory = self.files.directory
        place = _mode_in(directory)
        # The config.toml of a search is that of a comparison.
        mode = place if place == "tune" else text(self.config, "mode") or text(self.result, "mode") or place
        read = {"compare": self._comparison, "tune": self._search}.get(mode or "", self._fit)
        values = read(parts)
        if self.files.faults:
            values |= {"status": "damaged", "reason": "; ".join(self.files.faults)}
        elif not self.config and not self.result and values["status"] == "interrupted":
            values |= {"status": "damaged", "reason": f"it holds neither {CONFIG} nor {RESULT}"}
        if text(values, "reason"):
            values["reason"] = escape_controls(str(text(values, "reason")))
        return RunInfo(
            directory=directory,
            run=escape_controls(str(directory.relative_to(self.root))),
            mode=mode,
            model=directory.name if self.is_part and directory.name in CONTROLS else mode,
            changed=self.files.changed(),
            **(self._settings(mode) | values),
        )

    def _settings(self, mode: str | None) -> dict[str, Any]:
        config = self.config
        arch = text(config, "student_arch")
        if mode == "teacher":
            arch = text(config, "teacher_arch") or (DEFAULT_TEACHER if config else None)
        plugins = at(config, "plugin")
        names = ("name", "dataset", "data_dir", "labels", "recipe")
        settings = {name: text(config, name) for name in names} | {"arch": arch}
        cleaned = {name: value and escape_controls(value) for name, value in settings.items()}
        seed = whole(self.result, "seed")
        return cleaned | {
            "plugins": tuple(map(str, plugins)) if isinstance(plugins, list) else (),
            "seed": whole(config, "seed") if seed is None else seed,
        }

    def _fit(self, parts: bool) -> dict[str, Any]:
        """Returns the values of one network's run."""
        if not self.result and not self.is_part:
            inside = self._parts()
            if inside:
                return self._unfinished(inside) | {"parts": inside}
        values = self._status() | self._figures()
        return values | {"parts": self._parts() if parts and not self.is_part else ()}

    def _figures(self) -> dict[str, Any]:
        """Returns the figures in result.json, and of a run without them those in metrics.jsonl."""
        result = self.result
        best = at(result, "best")
        values: dict[str, Any] = {
            "epochs": whole(result, "epochs"),
            "best_epoch": whole(result, "best_epoch"),
            "seconds": number(result, "seconds"),
            "parameters": whole(result, "parameters"),
            "test_accuracy": number(result, "test", "accuracy"),
            "test_errors": whole(result, "test", "errors"),
            "test_images": whole(result, "test", "images"),
        }
        held_out = held_out_accuracy(best)
        if best is None and (rows := self.files.metrics()):
            values["epochs"] = rows[-1]["epoch"]
            accuracies = [value for row in rows if (value := held_out_accuracy(row)) is not None]
            held_out = max(accuracies, default=None)
        if whole(self.config, "val_size") == 0:
            held_out = None
        return values | {"held_out_accuracy": held_out}

    def _status(self) -> dict[str, Any]:
        status, reason = text(self.result, "status"), text(self.result, "reason")
        if status in ("completed", "stopped"):
            if self.is_part or at(self.result, "test") is not None:
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
        figures = self.files.json(COMPARISON)
        if figures and not isinstance(at(figures, "differences"), list):
            self.files.faults.append(f"{COMPARISON} is damaged: it has no differences")
        finished = bool(figures) and not self.active
        inside = self._parts() if parts or not finished else ()
        values = {"status": "finished"} if finished else self._unfinished(inside)
        distilled = at(figures, "models", _DISTILLED)
        accuracy = number(distilled, "test_accuracy_percent", "mean")
        return values | {
            "held_out_accuracy": None if whole(self.config, "val_size") == 0 else _held_out_mean(figures),
            "test_accuracy": None if accuracy is None else accuracy / 100,
            "test_images": whole(figures, "test_images"),
            "parameters": whole(distilled, "parameters"),
            "gain": _gain(figures),
            "parts": inside if parts else (),
        }

    def _search(self, parts: bool) -> dict[str, Any]:
        figures = self.files.json(SEARCH)
        if at(figures, "finished") is True and not self.active:
            values: dict[str, Any] = {"status": "finished"}
        else:
            values = {"status": "running" if self.active else "interrupted"}
        best = at(figures, "models", _DISTILLED)
        trials = at(best, "trials")
        for trial in trials if isinstance(trials, list) else ():
            if at(trial, "number") == at(best, "chosen"):
                values["held_out_accuracy"] = number(trial, "rungs", -1, "held_out_accuracy_fraction")
        return values | {"seconds": number(figures, "seconds"), "parts": self._parts() if parts else ()}

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
        directory = self.files.directory
        readers = (_Reader(part, directory, self.active, is_part=True) for part in self.files.parts())
        return tuple(reader.run(parts=False) for reader in readers)


def _mode_in(directory: Path) -> str | None:
    """Returns the mode by the place of a run directory, LOGDIR/MODE/version_N."""
    mode = directory.parent.name
    return mode if mode in RUN_FOLDERS else None


def _gain(figures: Mapping[str, Any]) -> Gain | None:
    difference = at(figures, "differences", 0)
    points = number(difference, "gain_percentage_points", "mean")
    if points is None:
        return None
    low, high = (number(difference, "gain_percentage_points", end) for end in ("low", "high"))
    seeds = whole(difference, "gain_percentage_points", "n")
    return Gain(points, low, high, seeds or 0, text(difference, "outcome") or "undecided")


def _held_out_mean(figures: Mapping[str, Any]) -> float | None:
    """Returns the distilled student's held-out accuracy of the best epoch, mean over the seeds."""
    results = at(figures, "results")
    best: list[float] = []
    for row in results if isinstance(results, list) else ():
        history = at(row, "held_out_history")
        if at(row, "model") == _DISTILLED and isinstance(history, list):
            epoch = whole(row, "best_epoch")
            points = [point for point in history if whole(point, "epoch") == epoch]
            values = (number(point, "accuracy_fraction") for point in points)
            best += [value for value in values if value is not None]
    return mean(best) if best else None
