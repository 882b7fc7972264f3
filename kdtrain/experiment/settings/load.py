"""Configurations from flags and TOML files: of a new run, and of one that is resumed."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import tomli

from kdtrain.errors import KdtrainError, UsageError, clipped, unknown_name_message
from kdtrain.experiment.settings.config import FitConfig, recipe_for, recipe_settings
from kdtrain.experiment.settings.schema import flag_of, kind_of
from kdtrain.runtime.locations import absolute_name, missing_path_text, short_name
from kdtrain.runtime.ranks import rank
from kdtrain.runtime.regular_files import read_text
from kdtrain.store.record import read_record
from kdtrain.store.run_directory import check_name, latest_run
from kdtrain.store.search_record import Tuning

_LARGEST = 1 << 16  # bytes of a TOML file: tomli takes long for some large ones
_WITHOUT_EFFECT = {"keep", "stall_timeout"}  # do not change what is trained: a resumed run may change them
_MAY_NAME_FILES = ("dataset", "teacher_arch", "student_arch", "plugin")
_PATH_ARGUMENT = re.compile(r"(?<==)/[^,]*/")  # the folders in an argument of a plugin
_TYPE_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}
_DECIDED_BY = {"teacher_epochs": "epochs", "teacher_augment": "augment", "lr": "optimizer"}
"""Settings of a recipe that do not count where the user gives the setting on the right."""

_TUNED = ("temperature", "alpha", "lr", "weight_decay", "augment", "plugin")
"""Settings that a search may choose."""

_FIELDS = {field.name: field for field in dataclasses.fields(FitConfig)}


LATEST = Path()
"""The value of ``--resume`` that stands for the latest run."""


def fit_config(
    settings: Mapping[str, Any], file: Path | None, resume: Path | None
) -> tuple[FitConfig, Path | None]:
    """Returns the configuration of a fit, and the directory of the run that is resumed.

    Args:
        settings: values by the name of their setting.
        file: a TOML file; None without one.
        resume: the directory of the run to resume, or ``LATEST``; None for a new one.

    Raises:
        UsageError: a value is not allowed, or contradicts the run that is resumed.
    """
    return _config(settings, file, resume, "run", None)


def tune_config(
    settings: Mapping[str, Any], file: Path | None, resume: Path | None
) -> tuple[FitConfig, Path | None]:
    """Returns the configuration of a search, as ``fit_config`` does.

    Raises:
        UsageError: a value is not allowed, or nothing can be tuned with it.
    """
    config, resume = _config(settings, file, resume, "search", "tune")
    if config.nproc_per_node > 1 or rank() is not None:
        raise UsageError(
            "`kdtrain tune` trains its trials side by side, each in one process: leave --nproc-per-node and "
            "the launcher out."
        )
    if config.mode != "compare":
        raise UsageError(
            f"`kdtrain tune` is for the students of a comparison, not for --mode {config.mode}: "
            "leave it out, or give --mode compare."
        )
    if config.teacher_per_seed:
        raise UsageError("--teacher-per-seed is for `kdtrain fit`: leave it out here.")
    if config.val_size == 0:
        raise UsageError(
            "`kdtrain tune` chooses by held-out images, but --val-size 0 holds none out: leave it out."
        )
    return config, resume


def _config(
    settings: Mapping[str, Any], file: Path | None, resume: Path | None, what: str, folder: str | None
) -> tuple[FitConfig, Path | None]:
    """Returns configuration and directory; runs are in ``folder``, or in one named after the mode."""
    if resume is None:
        config = new_config(settings, file)
        if config.name is not None and rank() is None:  # another rank may have begun this run
            check_name(config.logdir, folder or config.mode, config.name)
        return (config if folder is None else dataclasses.replace(config, tuned=None)), None
    if file is not None:
        raise UsageError(f"--resume reads the configuration of the {what}: leave --config out.")
    if resume == LATEST:
        wanted = load_config(settings)
        of_mode = wanted.logdir / (folder or wanted.mode)
        resume = of_mode / wanted.name if wanted.name else latest_run(wanted.logdir, of_mode.name)
    return resumed_config(settings, resume), resume


def load_config(flags: Mapping[str, Any], file: Path | None = None) -> FitConfig:
    """Returns the configuration. Flags take precedence over the file, and the file over defaults.

    Args:
        flags: values by the name of their setting.
        file: a TOML file.

    Raises:
        UsageError: the file cannot be read, or a value in it or in a flag is not allowed.
    """
    return FitConfig(**(_settings_of(file) | _settings_in(flags)))


def new_config(flags: Mapping[str, Any], file: Path | None = None) -> FitConfig:
    """Returns the configuration of a new fit, in which a recipe takes precedence over defaults.

    Args:
        flags: values by the name of their setting.
        file: a TOML file.

    Raises:
        UsageError: there is no such recipe, the file cannot be read, or a value is not allowed.
    """
    given = _settings_of(file) | _settings_in(flags)
    few_labels = bool(given.keys() & {"labels", "transfer_data"})
    if "recipe" not in given:
        dataset = given.get("dataset", FitConfig.dataset)
        given["recipe"] = recipe_for(dataset, given.get("data_dir"), few_labels=few_labels)
    recipe = given["recipe"]
    settings = {
        name: _checked(name, value, f"{name} in the recipe {recipe}")
        for name, value in recipe_settings(recipe).items()
        if name != "teacher_arch" and _DECIDED_BY.get(name) not in given
    }  # FitConfig.architecture_for has teacher_arch: as a setting, it would refuse other checkpoints
    if given.get("mode", FitConfig.mode) != "compare":
        settings.pop("seeds", None)
    if not few_labels and "labels" not in settings:
        settings.pop("transfer_share", None)
    return FitConfig(**(settings | given))


def absolute_paths(config: FitConfig) -> FitConfig:
    """Returns the configuration with absolute paths, so that it means the same in any working directory."""
    return _with_paths(config, Path.absolute, absolute_name)


def without_folders(config: FitConfig) -> FitConfig:
    """Returns the configuration with the names of files and folders alone, for a page that others see."""
    return _with_paths(
        config, lambda path: Path(path.name), lambda name: _PATH_ARGUMENT.sub("", short_name(name))
    )


def _with_paths(
    config: FitConfig, path_as: Callable[[Path], Path], name_as: Callable[[str], str]
) -> FitConfig:
    changed: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, Path):
            changed[name] = path_as(value)
        elif name == "teacher_checkpoint":
            changed[name] = tuple(map(path_as, value))
        elif name in _MAY_NAME_FILES and value is not None:
            changed[name] = name_as(value) if isinstance(value, str) else tuple(map(name_as, value))
    if config.image_save_dir is not None:
        changed.pop("image_save_name", None)  # it is relative to image_save_dir
    return dataclasses.replace(config, **changed)


def resumed_config(flags: Mapping[str, Any], directory: Path) -> FitConfig:
    """Returns the configuration to resume a run with.

    Flags may change settings that have no effect on the training. They may raise the number of epochs if
    the schedule is constant, because other schedules depend on that number.

    Args:
        flags: values by the name of their setting.
        directory: the run's directory.

    Raises:
        UsageError: the directory is no run's, or a flag contradicts the settings that the run was begun with.
    """
    file = directory / "config.toml"
    if not os.path.isfile(file):
        raise UsageError(
            f"--resume {missing_path_text(directory)}: it has no config.toml, so it is no run directory."
        )
    begun = _moved(absolute_paths(load_config({}, file)), directory)
    resumed = dataclasses.replace(
        begun, **{name: getattr(absolute_paths(load_config(flags, file)), name) for name in flags}
    )
    for name in flags.keys() - _WITHOUT_EFFECT:
        before, now = getattr(begun, name), getattr(resumed, name)
        reason = "a resumed run keeps its settings"
        if name == "epochs" and begun.schedule == "constant":
            if now > (before or now):
                continue
            reason = "a resumed run can only have more"
        elif name == "epochs":
            reason = f"the {begun.schedule} schedule depends on the number of epochs"
        if before != now:
            raise UsageError(
                f"{flag_of(name)} {now}: the run in {directory} was begun with {before}, and {reason}. "
                "Leave the flag out, or start a new run."
            )
    return resumed


def _moved(config: FitConfig, directory: Path) -> FitConfig:
    """Returns a run's configuration with the paths changed if its log directory was moved or copied."""
    here = directory.resolve()
    if here.parent.name not in (config.mode, "tune") or here.parents[1] == config.logdir.resolve():
        return config

    def moved(path: Path) -> Path:
        inside = path.is_relative_to(config.logdir)
        return here.parents[1] / path.relative_to(config.logdir) if inside else path

    paths: dict[str, Any] = {
        name: moved(value) for name, value in vars(config).items() if isinstance(value, Path)
    }
    paths["teacher_checkpoint"] = tuple(map(moved, config.teacher_checkpoint))
    return dataclasses.replace(config, **paths)


def _settings_of(file: Path | None) -> dict[str, Any]:
    """Returns the checked values of a TOML file."""
    return {name: _checked(name, value, f"{name} in {file}") for name, value in _read_toml(file).items()}


def _settings_in(flags: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the checked values of flags."""
    return {name: _checked(name, value, flag_of(name)) for name, value in flags.items()}


def _read_toml(file: Path | None) -> dict[str, Any]:
    if file is None:
        return {}
    try:
        values = tomli.loads(read_text(file, _LARGEST))
    except FileNotFoundError:
        raise UsageError(f"--config {missing_path_text(file)}: there is no such file.") from None
    except OSError as error:
        raise UsageError(f"--config {file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not TOML
        raise UsageError(f"--config {file} cannot be read: {error}.") from error
    for name in values:
        if name not in _FIELDS:
            raise UsageError(f"{file}: {unknown_name_message('setting', name, _FIELDS)}")
    return values


def _checked(name: str, value: Any, where: str) -> Any:
    """Returns a setting's value in the setting's own type.

    Args:
        name: the setting.
        value: its value from a flag or a file.
        where: the flag, or the place in the file, for an error to begin with.

    Raises:
        UsageError: the value is not allowed.
    """
    _, repeatable = kind_of(name)
    if not repeatable:
        return _checked_item(name, value, where)
    items = value if isinstance(value, (list, tuple)) else [value]
    limit = _FIELDS[name].metadata["max_values"]
    if len(items) > limit:
        raise UsageError(f"{where} has {len(items):,} values; it may have at most {limit:,}.")
    return tuple(_checked_item(name, item, where) for item in items)


def _checked_item(name: str, value: Any, where: str) -> Any:
    """Returns one value of a setting, as ``_checked`` does."""
    kind, _ = kind_of(name)
    value = _converted(str(value) if name == "labels" and _is_a(value, int) else value, kind)
    if not _is_a(value, kind):
        raise UsageError(f"{where} is {clipped(value, repr)}: it must be {_TYPE_NAMES[kind]}.")
    if not _can_be_saved(value):
        raise UsageError(f"{where} is {clipped(str(value), repr)}: it is not valid UTF-8, or contains NUL.")
    choices, check = _FIELDS[name].metadata["choices"], _FIELDS[name].metadata["check"]
    if choices and value not in choices:
        raise UsageError(f"{where}: {unknown_name_message(name, value, choices)}")
    if check is not None:
        is_allowed, demand = check
        if not is_allowed(value):
            raise UsageError(f"{where} is {clipped(value)}: it {demand}.")
    return value


def _converted(value: Any, kind: type) -> Any:
    """Returns an integer as a float and a text as a path where the setting's type demands it."""
    if kind is float and _is_a(value, int):
        if abs(value) > sys.float_info.max:
            return math.inf if value > 0 else -math.inf
        return float(value)
    return Path(value) if kind is Path and isinstance(value, str) else value


def _is_a(value: Any, kind: type) -> bool:
    """Returns whether a value is of a type; unlike in Python, true and false are no integers."""
    return isinstance(value, kind) and isinstance(value, bool) == (kind is bool)


def _can_be_saved(value: Any) -> bool:
    """Returns whether config.toml can hold a value, and the system accepts it if it is a path."""
    if not isinstance(value, (str, Path)):
        return True
    try:
        str(value).encode()
    except UnicodeEncodeError:  # a command line may hold bytes that are not UTF-8
        return False
    return not (isinstance(value, Path) and "\0" in str(value))


def tuned_settings(config: FitConfig) -> dict[str, dict[str, Any]]:
    """Returns the settings that the search of --tuned has chosen, by model; none without it.

    Raises:
        UsageError: the search is not finished, a setting is not allowed, or another setting of the command
            contradicts it.
        KdtrainError: the file is missing or damaged.
    """
    if config.tuned is None:
        return {}
    chosen = _chosen(config.tuned)
    defaults, recipe = FitConfig(), recipe_settings(config.recipe)
    for name, value in chosen.get("student_kd", {}).items():
        now = getattr(config, name)
        if now not in (value, getattr(defaults, name), recipe.get(name)):
            raise UsageError(
                f"{flag_of(name)} is {now}, but --tuned {config.tuned} has chosen {value} for student_kd: "
                "leave one of them out."
            )
    return chosen


def _chosen(file: Path) -> dict[str, dict[str, Any]]:
    remedy = "`kdtrain tune` writes this file."
    try:
        search = read_record(file, Tuning)
    except KdtrainError as error:
        raise KdtrainError(f"--tuned {error} {remedy}") from error
    if search is None:
        raise KdtrainError(f"--tuned {file} is not there. {remedy}")
    if not search.finished:
        raise UsageError(
            f"--tuned {file}: the search is not finished. "
            f"Go on with: kdtrain tune --resume {shlex.quote(str(file.parent))}"
        )
    chosen = {}
    for model, student in search.students.items():
        if unknown := student.settings.keys() - set(_TUNED):
            raise KdtrainError(f"--tuned {file} is damaged: {model} has {min(unknown)}. Tune again.")
        try:
            config = load_config(student.settings)
        except UsageError as error:
            raise UsageError(f"--tuned {file}: {error}") from error
        chosen[str(model)] = {name: getattr(config, name) for name in student.settings}
    return chosen
