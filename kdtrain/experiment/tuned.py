"""The file of ``kdtrain tune``: the state of a resumed search, and the settings that it has chosen."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from kdtrain.errors import KdtrainError, UsageError, clipped
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import load_config
from kdtrain.experiment.settings.recipe import recipe_settings
from kdtrain.experiment.settings.schema import flag_of
from kdtrain.experiment.tune.halving import parse_budget
from kdtrain.report.tuning import FILE, VERSION, SearchSettings, Tuning
from kdtrain.runtime.limits import MOST_SECONDS, MOST_TRIALS
from kdtrain.runtime.regular_files import read_text
from kdtrain.runtime.value_checks import EPOCHS, between, check_value

_LARGEST = 1 << 24  # bytes; a trial has about 1,000
TUNE_SEEDS = between(1, 100)
"""The check of the number of seeds of a trial."""

_RUNGS = 3
_SIZES = between(1, MOST_TRIALS)
_TIMES = between(0, MOST_SECONDS)
_SETTINGS = ("temperature", "alpha", "lr", "weight_decay", "augment", "plugin")


def begun_tuning(directory: Path) -> Tuning:
    """Returns a search as it was left, without its trials; their run directories have these.

    Raises:
        KdtrainError: the file is missing or damaged.
    """
    file = directory / FILE
    content = _read(file)
    try:
        return _begun(content)
    except (KeyError, UsageError) as error:
        reason = f"it has no {error.args[0]}." if isinstance(error, KeyError) else error
        raise KdtrainError(f"{file} is damaged: {reason} Start a new search.") from error


def _begun(content: dict[str, Any]) -> Tuning:
    """Returns the search in the content of a file.

    Raises:
        KeyError: a value is missing.
        UsageError: no search has such a value.
    """
    sizes = _list_of(content, "trials_of_rungs", int, "whole numbers", _RUNGS)
    for size in sizes:
        check_value("trials_of_rungs", size, _SIZES)
    if sizes != sorted(sizes, reverse=True):
        raise UsageError(f"trials_of_rungs is {sizes}: it must not rise.")
    parse_budget(content["budget"], "budget")
    for name, check, kind in (
        ("seeds", TUNE_SEEDS, int),
        ("seconds", _TIMES, float),
        ("seconds_per_epoch", _TIMES, float),
    ):
        check_value(name, content[name], check, kind)
    if content["last_epoch"] is not None:
        check_value("last_epoch", content["last_epoch"], EPOCHS)
    searches = _list_of(content, "searches", str, "texts", MOST_TRIALS)
    return Tuning(
        SearchSettings(content["budget"], tuple(searches), content["seeds"]),
        sizes=tuple(sizes),
        seconds=float(content["seconds"]),
        seconds_per_epoch=float(content["seconds_per_epoch"]),
        last_epoch=content["last_epoch"],
    )


def _list_of(content: dict[str, Any], name: str, kind: type, what: str, most: int) -> list[Any]:
    values = content[name]
    if not isinstance(values, list) or len(values) > most or any(type(value) is not kind for value in values):
        raise UsageError(f"{name} is {clipped(values, repr)}: it must be a list of at most {most:,} {what}.")
    return values


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
    content = _read(file)
    if not content.get("finished"):
        raise UsageError(
            f"--tuned {file}: the search is not finished. "
            f"Go on with: kdtrain tune --resume {shlex.quote(str(file.parent))}"
        )
    chosen = {}
    try:
        for model, result in content["models"].items():
            settings = dict(result["settings"])
            if unknown := settings.keys() - set(_SETTINGS):
                raise ValueError(f"{model} has {min(unknown)}")
            config = load_config(settings)
            chosen[str(model)] = {name: getattr(config, name) for name in settings}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise KdtrainError(f"--tuned {file} is damaged: {error!r}. Tune again.") from error
    except UsageError as error:
        raise UsageError(f"--tuned {file}: {error}") from error
    return chosen


def _read(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(read_text(file, _LARGEST))
    except (OSError, ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, too large
        reason = getattr(error, "strerror", None) or error
        raise KdtrainError(f"{file} cannot be read: {reason}. `kdtrain tune` writes this file.") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise KdtrainError(f"{file} was not written by this version of `kdtrain tune`.")
    return content
