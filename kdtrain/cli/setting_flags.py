"""Flags made from the settings of ``FitConfig``."""

from __future__ import annotations

import argparse
import dataclasses
from typing import Any

from kdtrain.cli.flag_types import number, whole_number
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.recipe import RECIPE_SETTINGS
from kdtrain.experiment.settings import flag_of, kind_of

_TYPES = {int: whole_number, float: number}


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for every setting. A flag that is not given leaves no trace in the namespace."""
    for field in dataclasses.fields(FitConfig):
        add_setting_flag(parser, field.name)
        if field.metadata["shorthands"]:
            _add_shorthands(parser.add_mutually_exclusive_group(), field)


def add_setting_flag(parser: argparse.ArgumentParser, name: str, **options: Any) -> None:
    """Adds the flag of one setting, and its hidden aliases.

    Args:
        parser: the parser of a command.
        name: the setting's name.
        options: arguments of ``add_argument`` that replace those of the setting.
    """
    field = next(field for field in dataclasses.fields(FitConfig) if field.name == name)
    kind, repeatable = kind_of(name)
    text, choices = field.metadata["help"], field.metadata["choices"]
    if field.default not in (None, ()) and field.default is not False:
        text += f" [by the recipe, or {field.default}]" if name in RECIPE_SETTINGS else f" [{field.default}]"
    text = text.replace("%", "%%")  # argparse formats it
    settings: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        settings["action"] = "store_true"
    else:
        # load_config checks the choices: it names the setting, and checks those of a file as well.
        listed = f"{{{','.join(choices)}}}" if choices else None
        settings["metavar"] = field.metadata["metavar"] or listed or kind.__name__.upper()
        settings["type"] = _TYPES.get(kind, kind)
        settings["action"] = "append" if repeatable else "store"
    settings |= options
    parser.add_argument(flag_of(name), **settings)
    for alias in field.metadata["aliases"]:
        parser.add_argument(alias, **settings | {"help": argparse.SUPPRESS})


def _add_shorthands(group: argparse._MutuallyExclusiveGroup, field: dataclasses.Field[Any]) -> None:
    """Adds the flags that stand for one value of a setting each."""
    for spelling, value in field.metadata["shorthands"].items():
        group.add_argument(
            spelling,
            help=f"short for {flag_of(field.name)} {value}",
            action="store_const",
            const=value,
            dest=field.name,
            default=argparse.SUPPRESS,
        )
