"""Flags: their types and help, those of the settings, and those that several commands share."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdtrain.errors import clipped, did_you_mean
from kdtrain.experiment.settings.config import RECIPE_SETTINGS, FitConfig, list_recipes, recipe_for
from kdtrain.experiment.settings.load import LATEST
from kdtrain.experiment.settings.schema import DATA_SETS, GROUPS, flag_of, kind_of
from kdtrain.runtime.console import wrapped
from kdtrain.runtime.locations import command_name
from kdtrain.runtime.value_checks import DEVICES

Parser = argparse.ArgumentParser

_METAVARS = {int: "N", float: "X"}
_HELP_COLUMN = 23  # where the texts begin: after `--student-arch ARCH`


def whole_number(text: str) -> int:
    """Returns the integer that ``text`` spells.

    Raises:
        ArgumentTypeError: it spells none, or one of more digits than Python reads.
    """
    try:
        return int(text)
    except ValueError:
        too_long = text.strip("-").isdecimal()
        raise _wrong(text, "a number of fewer digits" if too_long else "a whole number") from None


def decimal(text: str) -> float:
    """Returns the number that ``text`` spells.

    Raises:
        ArgumentTypeError: it spells none.
    """
    try:
        return float(text)
    except ValueError:
        raise _wrong(text, "a number") from None


def choice(*options: str) -> dict[str, Any]:
    """Returns the ``type`` and ``metavar`` of a flag whose value is one of ``options``.

    The type suggests the option that is nearest to a mistyped one, which argparse's ``choices`` does not.
    """

    def option(text: str) -> str:
        if text not in options:
            raise _wrong(text, " or ".join(options) + did_you_mean(text, options))
        return text

    return {"type": option, "metavar": f"{{{','.join(options)}}}"}


def _wrong(text: str, demand: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"is {clipped(text, repr)}: it must be {demand}")


_TYPES = {int: whole_number, float: decimal}


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


def settings_in(options: argparse.Namespace) -> dict[str, Any]:
    """Returns the settings that flags of ``add_setting_flags`` have given."""
    names = {field.name for field in dataclasses.fields(FitConfig)}
    return {name: value for name, value in vars(options).items() if name in names}


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


def config_flags(parser: Parser) -> Mapping[str, argparse._ArgumentGroup]:
    """Adds the flags of all settings, and ``--config``; returns the groups of the help by heading."""
    groups = add_setting_flags(parser)
    groups["what to train"].add_argument(
        "--config", type=Path, metavar="FILE", help="read settings from a TOML file; flags win over it"
    )
    return groups


def resume_flag(parser: argparse._ActionsContainer, help: str) -> None:
    """Adds ``--resume``, whose directory may be left out."""
    parser.add_argument(
        "--resume",
        type=Path,
        nargs="?",
        const=LATEST,
        default=argparse.SUPPRESS,
        metavar="RUN_DIR",
        help=help,
    )


def data_flags(parser: Parser) -> None:
    """Adds the flags that say which data a model is tested on."""
    parser.add_argument(
        "--arch",
        metavar="ARCH",
        help="architecture that the model must have. MODULE:FACTORY and FILE.py:FACTORY need this flag: "
        "without it, code that a model file names is not run [the one that the model names]",
    )
    parser.add_argument(
        "--dataset",
        metavar="DATA",
        help=f"data set whose test images are used: {DATA_SETS} "
        "[the one that the model was trained on, if it is built in]",
    )
    add_setting_flag(parser, "data_dir", default=None)
    add_setting_flag(parser, "skip_corrupt", default=False)


def device_flag(parser: Parser) -> None:
    """Adds ``--device``."""
    add_setting_flag(parser, "device", default=FitConfig.device, **choice(*DEVICES))


def model_folder_flag(parser: Parser) -> None:
    """Adds ``--model-save-dir`` for commands that read models."""
    default = FitConfig().models
    add_setting_flag(
        parser, "model_save_dir", default=default, help=f"folder of the trained models [{default}]"
    )


def message_flags(parser: argparse._ActionsContainer) -> None:
    """Adds ``--quiet`` and ``--verbose``, which set the level of the messages on stderr."""
    group = parser.add_mutually_exclusive_group()
    for flag, level, text in (
        ("--quiet", logging.WARNING, "print only warnings, errors and the result; no progress bars"),
        ("--verbose", logging.DEBUG, "also print every epoch; its speed; when each job begins and ends"),
    ):
        group.add_argument(
            flag, dest="level", action="store_const", const=level, default=argparse.SUPPRESS, help=text
        )


def json_flag(parser: argparse._ActionsContainer, what: str) -> None:
    """Adds ``--json``, which prints ``what``."""
    parser.add_argument("--json", action="store_true", help=f"print {what} in place of text")
