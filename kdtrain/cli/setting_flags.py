"""Flags made from the settings of ``FitConfig``, and their help: a short one, and one of all flags."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

from kdtrain.cli.flag_types import number, whole_number
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.recipe import RECIPE_SETTINGS, list_recipes, recipe_for
from kdtrain.experiment.setting import GROUPS
from kdtrain.experiment.settings import flag_of, kind_of
from kdtrain.runtime.console import wrapped
from kdtrain.runtime.locations import command_name

_TYPES = {int: whole_number, float: number}
_METAVARS = {int: "N", float: "X"}
_HELP_COLUMN = 23  # where the texts begin: after `--student-arch ARCH`


class HelpText(argparse.HelpFormatter):
    """Help whose commands begin as the user began, and whose lines are broken as those of messages."""

    def __init__(self, prog: str, max_help_position: int = 24) -> None:
        super().__init__(prog.replace("kdtrain", command_name(), 1), max_help_position=max_help_position)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(text, width).split("\n")

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return wrapped(text, width + 2)  # argparse keeps two columns free


class _FullHelp(HelpText):
    """The help of all flags."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, _HELP_COLUMN)


class _ShortHelp(_FullHelp):
    """The help of what most users need: it leaves out rare settings, and texts after their first part."""

    def add_argument(self, action: argparse.Action) -> None:
        """Adds a flag, unless its short text is left out."""
        if getattr(action, "short", None) != argparse.SUPPRESS:
            super().add_argument(action)

    def _get_help_string(self, action: argparse.Action) -> str:
        text, _, default = (action.help or "").removesuffix("]").partition(" [")
        first_parts = (part.partition("; ")[0] for part in (text, default))
        return getattr(action, "short", _with_default(*first_parts))


class _HelpAll(argparse.Action):
    """The flag that prints the help of all flags."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        parser.formatter_class, parser.epilog = _FullHelp, None
        parser.print_help()
        parser.exit()


def add_setting_flags(parser: argparse.ArgumentParser) -> Mapping[str, argparse._ArgumentGroup]:
    """Adds a flag for every setting, and ``--help-all``; returns the groups of the help by heading.

    A flag that is not given leaves no trace in the namespace.
    """
    parser.formatter_class = _ShortHelp
    parser.usage = "%(prog)s [flags]"
    parser.epilog = f"`{parser.prog} --help-all` shows the other flags too, and longer texts."
    helps = [parser._option_string_actions["--help"]]
    helps.append(
        parser.add_argument("--help-all", action=_HelpAll, nargs=0, help="show the help of all flags")
    )
    for action in helps:  # of what the last line says
        action.short = argparse.SUPPRESS  # type: ignore[attr-defined]
    groups = {heading: parser.add_argument_group(heading) for heading in GROUPS}
    for field in dataclasses.fields(FitConfig):
        group = groups[field.metadata["group"]]
        add_setting_flag(group, field.name)
        if field.metadata["shorthands"]:
            _add_shorthands(group.add_mutually_exclusive_group(), field)
    return groups


def add_setting_flag(parser: argparse._ActionsContainer, name: str, **options: Any) -> None:
    """Adds the flag of one setting, and its hidden aliases.

    Args:
        parser: the parser of a command, or a group of its flags.
        name: the setting's name.
        options: arguments of ``add_argument`` that replace those of the setting.
    """
    field = next(field for field in dataclasses.fields(FitConfig) if field.name == name)
    kind, repeatable = kind_of(name)
    choices = field.metadata["choices"]
    text, short = (text.replace("%", "%%") for text in _help_texts(field))  # argparse formats them
    settings: dict[str, Any] = {"dest": name, "default": argparse.SUPPRESS, "help": text}
    if kind is bool:
        settings["action"] = "store_true"
    else:
        # load_config checks the choices: it names the setting, and checks those of a file as well.
        listed = f"{{{','.join(choices)}}}" if choices else None
        settings["metavar"] = field.metadata["metavar"] or listed or _METAVARS.get(kind, "NAME")
        settings["type"] = _TYPES.get(kind, kind)
        settings["action"] = "append" if repeatable else "store"
    settings |= options
    action = parser.add_argument(flag_of(name), **settings)
    action.short = short if field.metadata["is_common"] else argparse.SUPPRESS  # type: ignore[attr-defined]
    for alias in field.metadata["aliases"]:
        parser.add_argument(alias, **settings | {"help": argparse.SUPPRESS})


def _add_shorthands(group: argparse._MutuallyExclusiveGroup, field: dataclasses.Field[Any]) -> None:
    """Adds the flags that stand for one value of a setting each."""
    for spelling, value in field.metadata["shorthands"].items():
        action = group.add_argument(
            spelling,
            help=f"short for {flag_of(field.name)} {value}",
            action="store_const",
            const=value,
            dest=field.name,
            default=argparse.SUPPRESS,
        )
        if not field.metadata["is_common"]:
            action.short = argparse.SUPPRESS  # type: ignore[attr-defined]


def _help_texts(field: dataclasses.Field[Any]) -> tuple[str, str]:
    """Returns the help text of a setting with its default in each recipe, and the short one.

    The short one has the default in the recipe for the default data, or else one of a recipe that has it.
    """
    text, _, own = field.metadata["help"].removesuffix("]").partition(" [")
    if field.default not in (None, ()) and field.default is not False:
        own = _shown(field.default)
    usual, recipes = recipe_for(FitConfig.dataset, None), _values_in_recipes(field.name)
    other = [
        f"{value} in recipe{'s' * (len(names) > 1)} {', '.join(names)}"
        for value, names in recipes.items()
        if value != own
    ]
    first = [f"{value} in recipe {usual}" for value, names in recipes.items() if usual in names]
    return _with_default(text, own, *other), _with_default(
        text.partition("; ")[0], *(first or (own.partition("; ")[0], *other[:1]))
    )


def _values_in_recipes(name: str) -> dict[str, list[str]]:
    """Returns each value that recipes have for a setting, with the names of these recipes."""
    values: dict[str, list[str]] = {}
    if name in RECIPE_SETTINGS:
        for recipe, settings in _recipes().items():
            if name in settings:
                values.setdefault(_shown(settings[name]), []).append(recipe)
    return values


@functools.cache  # to parse the files takes some milliseconds
def _recipes() -> dict[str, dict[str, Any]]:
    return {recipe.name: recipe.settings for recipe in list_recipes()}


def _with_default(text: str, *defaults: str) -> str:
    return f"{text} [{'; '.join(defaults)}]" if any(defaults) else text


def _shown(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
