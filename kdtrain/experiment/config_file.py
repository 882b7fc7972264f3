"""Settings from flags and TOML files, each checked, with a sentence for whatever is wrong."""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tomli

from kdtrain.errors import UsageError, clipped, unknown_name_message
from kdtrain.experiment.config import FitConfig, flag_of, kind_of
from kdtrain.experiment.grid import parse_grid
from kdtrain.runtime.limits import MOST_COMBINATIONS
from kdtrain.runtime.locations import absolute_name, missing_path_text
from kdtrain.runtime.regular_files import read_text

_LARGEST = 1 << 16  # bytes of a TOML file; some kinds of it take tomli long
_WITHOUT_EFFECT = {"keep", "stall_timeout"}  # on what is trained: a resumed run may have others
_NAMES_OF_FILES = ("dataset", "teacher_arch", "student_arch", "assistant_arch", "plugin")
_WANTED = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", Path: "a path"}


def load_config(flags: Mapping[str, Any], file: Path | None = None) -> FitConfig:
    """Returns the configuration: flags over file over defaults.

    Raises:
        UsageError: the file cannot be read, or a value in it or in a flag is not allowed.
    """
    from_file = {name: _checked(name, value, f"{name} in {file}") for name, value in _read_toml(file).items()}
    from_flags = {name: _checked(name, value, flag_of(name)) for name, value in flags.items()}
    config = FitConfig(**(from_file | from_flags))
    grid = parse_grid(config.grid)
    number = math.prod(map(len, grid.values()))
    if number > MOST_COMBINATIONS:
        raise UsageError(f"--grid has {number:,} combinations; at most {MOST_COMBINATIONS:,} can be tried.")
    for name, values in grid.items():
        for value in values:
            _checked(name, value, f"--grid {name}={value:g}: {name}")
    return config


def absolute_paths(config: FitConfig) -> FitConfig:
    """Returns the same configuration for use in any folder: every path in it is absolute."""
    changed: dict[str, Any] = {}
    for name, value in vars(config).items():
        if isinstance(value, Path):
            changed[name] = value.absolute()
        elif name in _NAMES_OF_FILES and value is not None:
            changed[name] = (
                absolute_name(value) if isinstance(value, str) else tuple(map(absolute_name, value))
            )
    if config.image_save_dir is not None:
        changed.pop("image_save_name", None)  # a path in that folder
    return dataclasses.replace(config, **changed)


def resumed_config(flags: Mapping[str, Any], directory: Path) -> FitConfig:
    """Returns the configuration of a run that is to be resumed, from its directory.

    Settings that change nothing about the training may differ, and there may be more epochs where the
    schedule does not depend on how many there are.

    Raises:
        UsageError: the directory is no run's, or a flag asks for something else than the run was begun with.
    """
    file = directory / "config.toml"
    if not os.path.isfile(file):
        raise UsageError(
            f"--resume {missing_path_text(directory)}: there is no run, since it has no config.toml."
        )
    begun = _moved(absolute_paths(load_config({}, file)), directory)
    asked = dataclasses.replace(
        begun, **{name: getattr(absolute_paths(load_config(flags, file)), name) for name in flags}
    )
    why = dict.fromkeys(flags, "what is trained already cannot be changed")
    why["epochs"] = f"the {begun.schedule} schedule ends with the epochs that it was begun with"
    if begun.schedule == "constant":
        why["epochs"] = "there can only be more"
    for name in flags.keys() - _WITHOUT_EFFECT:
        before, now = getattr(begun, name), getattr(asked, name)
        more = name == "epochs" and begun.schedule == "constant" and now > (before or now)
        if before == now or more:
            continue
        raise UsageError(
            f"{flag_of(name)} {now}: the run in {directory} was begun with {before}, "
            f"and {why[name]}. Leave the flag out, or start a new run."
        )
    return asked


def _moved(config: FitConfig, directory: Path) -> FitConfig:
    """Returns a run's configuration with the paths that it has if its log directory was moved or copied."""
    here = directory.resolve()
    if here.parent.name != config.mode or here.parents[1] == config.logdir.resolve():
        return config
    paths = {name: value for name, value in vars(config).items() if isinstance(value, Path)}
    inside = {name: path for name, path in paths.items() if path.is_relative_to(config.logdir)}
    moved: dict[str, Any] = {
        name: here.parents[1] / path.relative_to(config.logdir) for name, path in inside.items()
    }
    return dataclasses.replace(config, **moved)


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
    known = [field.name for field in dataclasses.fields(FitConfig)]
    for name in values:
        if name not in known:
            raise UsageError(f"{file}: {unknown_name_message('setting', name, known)}")
    return values


def _checked(name: str, value: Any, where: str) -> Any:
    """Returns ``value`` in the setting's own type, or says what is wrong with it."""
    field = next(field for field in dataclasses.fields(FitConfig) if field.name == name)
    kind, repeatable = kind_of(name)
    values = list(value) if repeatable and isinstance(value, (list, tuple)) else [value]
    if len(values) > field.metadata["most"]:
        raise UsageError(
            f"{where}: these are {len(values):,}; it may have at most {field.metadata['most']:,}."
        )
    for index, item in enumerate(values):
        if kind is float and isinstance(item, int) and not isinstance(item, bool):
            item = float(item) if abs(item) < sys.float_info.max else math.inf
        if kind is Path and isinstance(item, str):
            item = Path(item)
        if not isinstance(item, kind) or (isinstance(item, bool) and kind is not bool):
            raise UsageError(f"{where} is {clipped(item, repr)}: it must be {_WANTED[kind]}.")
        if not _can_be_written(item):
            raise UsageError(
                f"{where} is {clipped(str(item), repr)}: it has a character that no file can keep."
            )
        choices, check = field.metadata["choices"], field.metadata["check"]
        if choices and item not in choices:
            raise UsageError(f"{where}: {unknown_name_message(name, str(item), choices)}")
        if check is not None and not check[0](item):
            raise UsageError(f"{where} is {clipped(item)}: it {check[1]}.")
        values[index] = item
    return tuple(values) if repeatable else values[0]


def _can_be_written(item: Any) -> bool:
    """Whether a value can stand in config.toml, and a path can be asked of the system."""
    if not isinstance(item, (str, Path)):
        return True
    try:
        str(item).encode()
    except UnicodeEncodeError:  # bytes of the command line that are not UTF-8
        return False
    return not (isinstance(item, Path) and "\0" in str(item))
