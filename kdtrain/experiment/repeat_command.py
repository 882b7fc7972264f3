"""The command that repeats a fit."""

from __future__ import annotations

import shlex
from typing import Any

from kdtrain.experiment.config import FitConfig, flag_of
from kdtrain.experiment.config_file import absolute_paths, load_config


def command(config: FitConfig) -> str:
    """Returns the ``kdtrain fit`` that comes to the same settings, with only the flags that it takes."""
    config = load_config(config.resolved())  # nothing in it is left to be decided
    wanted = absolute_paths(config).resolved()
    given: dict[str, Any] = {"mode": config.mode}
    # One setting can be the default of another, so what is still different is looked for again.
    while wrong := _different(absolute_paths(FitConfig(**given)).resolved(), wanted):
        given |= {name: getattr(config, name) for name in wrong}
    words = ["kdtrain", "fit"]
    for name, value in given.items():
        if value is True:
            words.append(flag_of(name))
        else:
            for item in map(str, value if isinstance(value, tuple) else (value,)):
                # Joined, what looks like a flag is still a value.
                words += [f"{flag_of(name)}={item}"] if item.startswith("-") else [flag_of(name), item]
    return shlex.join(words)


def _different(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    return [name for name in wanted if found.get(name) != wanted[name]]
