"""The command that repeats a fit."""

from __future__ import annotations

import shlex
from typing import Any

from kdtrain.experiment.config import FitConfig, flag_of
from kdtrain.experiment.config_file import absolute_paths, load_config, new_config
from kdtrain.experiment.recipe import NO_RECIPE, recipe_for

_DATA = ("dataset", "data_dir")
"""The settings that choose the recipe."""


def command(config: FitConfig) -> str:
    """Returns the ``kdtrain fit`` with the fewest flags that has the same settings."""
    config = load_config(config.resolved())  # every default is resolved
    wanted = absolute_paths(config).resolved()
    given: dict[str, Any] = {"mode": config.mode}
    given |= {
        name: getattr(config, name) for name in _DATA if getattr(config, name) != getattr(FitConfig, name)
    }
    recipe = config.recipe or NO_RECIPE
    if recipe != recipe_for(config.dataset, config.data_dir):
        given["recipe"] = recipe
    # A setting can decide the default of another one, so the comparison is repeated after each change.
    while wrong := _different(absolute_paths(new_config(given)).resolved(), wanted):
        given |= {name: getattr(config, name) for name in wrong}
    words = ["kdtrain", "fit"]
    for name, value in given.items():
        if value is True:
            words.append(flag_of(name))
        else:
            for item in map(str, value if isinstance(value, tuple) else (value,)):
                # Joined by "=", a value that begins with "-" is not parsed as a flag.
                words += [f"{flag_of(name)}={item}"] if item.startswith("-") else [flag_of(name), item]
    return shlex.join(words)


def _different(resolved: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [name for name in wanted if resolved.get(name) != wanted[name]]
