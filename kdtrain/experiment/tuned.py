"""The file of ``kdtrain tune``: its order for a resumed search, and the settings that it has chosen."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from kdtrain.errors import KdtrainError, UsageError
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.config_file import load_config
from kdtrain.experiment.recipe import recipe_settings
from kdtrain.experiment.settings import flag_of
from kdtrain.report.tuning import FILE, VERSION, Tuning
from kdtrain.runtime.regular_files import read_text

_LARGEST = 1 << 24  # bytes; a trial has about 1,000
_SETTINGS = ("temperature", "alpha", "lr", "weight_decay", "augment", "plugin")


def begun_tuning(directory: Path) -> Tuning:
    """Returns a search as it was left, without its trials; their run directories have these.

    Raises:
        KdtrainError: the file is missing or damaged.
    """
    file = directory / FILE
    content = _read(file)
    try:
        return Tuning(
            budget=str(content["budget"]),
            searches=tuple(map(str, content["searches"])),
            seeds=int(content["seeds"]),
            sizes=tuple(map(int, content["trials_of_rungs"])),
            seconds=float(content["seconds"]),
            seconds_per_epoch=float(content["seconds_per_epoch"]),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise KdtrainError(f"{file} is damaged: {error!r}. Start a new search.") from error


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
        raise KdtrainError(f"{file} is no result of `kdtrain tune`, or of another version of kdtrain.")
    return content
