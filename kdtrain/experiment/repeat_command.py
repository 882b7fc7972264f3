"""The command that repeats a fit."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from typing import Any

from kdtrain.errors import UsageError
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import absolute_paths, load_config, new_config, without_folders
from kdtrain.experiment.settings.recipe import NO_RECIPE
from kdtrain.experiment.settings.schema import flag_of
from kdtrain.runtime.locations import command_name

_DATA = ("dataset", "data_dir", "labels", "transfer_data")
"""The settings that choose the recipe."""


def command(config: FitConfig) -> str:
    """Returns the ``kdtrain fit`` with the fewest flags that has the same settings but for the name.

    Files and folders have their names alone: the command is for a page that others see.
    """
    unnamed = dataclasses.replace(config, name=None)
    config = load_config(unnamed.resolved())  # every default is resolved
    words, shown = ["fit"], vars(without_folders(config))
    for name, given in _fewest_settings(config).items():
        value = given if name == "recipe" else shown[name]
        if value is True:
            words.append(flag_of(name))
        else:
            for item in map(str, value if isinstance(value, tuple) else (value,)):
                # Joined by "=", a value that begins with "-" is not parsed as a flag.
                words += [f"{flag_of(name)}={item}"] if item.startswith("-") else [flag_of(name), item]
    return f"{command_name()} {shlex.join(words)}"


def _fewest_settings(config: FitConfig) -> dict[str, Any]:
    """Returns the settings that the recipe and the defaults complete to a configuration."""
    wanted = absolute_paths(config).resolved()
    first: dict[str, Any] = {"mode": config.mode}
    recipe = config.recipe or NO_RECIPE
    if recipe != config.chosen_recipe:
        first["recipe"] = recipe
    given = first | {name: getattr(config, name) for name in _DATA if name in wanted}
    # A setting can decide the default of another one, so the comparison is repeated after each change.
    while wrong := _different(given, wanted):
        given |= {name: getattr(config, name) for name in wrong}
    for name in given.keys() - first.keys():
        fewer = {other: value for other, value in given.items() if other != name}
        with contextlib.suppress(UsageError):  # what is left may not go together
            given = given if _different(fewer, wanted) else fewer
    return given


def _different(given: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Returns the resolved settings that are not as wanted in a fit with the given ones."""
    resolved = absolute_paths(new_config(given)).resolved()
    return [name for name in wanted if resolved.get(name) != wanted[name]]
