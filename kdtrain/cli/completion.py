"""The command ``kdtrain completion``: a script that completes commands, flags and values in a shell."""

from __future__ import annotations

import argparse
import functools
import re
from pathlib import Path

import shtab

from kdtrain.cli.flags import choice
from kdtrain.cli.parser import COMMANDS, command_parser, top_parser
from kdtrain.experiment.history.runs import SORTS
from kdtrain.experiment.settings.config import list_recipes
from kdtrain.experiment.settings.schema import NO_RECIPE
from kdtrain.runtime.signals import defer_signals

SHELLS = ("bash", "zsh", "fish")

_FIRST_PHRASE = re.compile(r"[;,.(\[]")
_FOLDERS = re.compile(r"(.*_)?DIR")  # what is shown for the value of a flag that takes a folder


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.description = (
        "Print a script that completes kdtrain's commands, flags and values in a shell. "
        "bash: `source <(kdtrain completion bash)` in ~/.bashrc. "
        'zsh: `eval "$(kdtrain completion zsh)"` in ~/.zshrc, after compinit. '
        "fish: `kdtrain completion fish > ~/.config/fish/completions/kdtrain.fish`."
    )
    parser.add_argument("shell", **choice(*SHELLS), help="the shell")


def run(options: argparse.Namespace) -> int:
    """Prints the script for a shell."""
    print(completion_script(options.shell))
    return 0


def completion_script(shell: str) -> str:
    """Returns the script for ``bash``, ``zsh`` or ``fish``, which runs nothing of kdtrain's."""
    top = top_parser()
    commands = top.add_subparsers()
    for name, text in COMMANDS.items():
        parser = command_parser(name)
        parser.description = text.capitalize()  # a line beside the command's name
        commands.add_parser(name, help=text)
        commands.choices[name] = parser
        _add_values(parser)
    return str(shtab.complete(top, shell=shell))


def _add_values(parser: argparse.ArgumentParser) -> None:
    """Adds to each flag what its value may be, and reduces its help to one short line."""
    names = _names()
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            continue
        shown = action.metavar if isinstance(action.metavar, str) else ""
        if shown.startswith("{"):
            action.choices = shown.strip("{}").split(",")
        elif action.dest in names:
            action.choices = names[action.dest]
        elif action.type is Path:
            folder = _FOLDERS.fullmatch(shown) is not None
            action.complete = shtab.DIRECTORY if folder else shtab.FILE  # type: ignore[attr-defined]
        if action.help and action.help != argparse.SUPPRESS:
            action.help = _FIRST_PHRASE.split(action.help)[0]


@functools.cache
def _names() -> dict[str, list[str]]:
    """Returns the names that there are for the values of some settings, by setting."""
    with defer_signals():  # an interrupted import may come out as another error
        from kdtrain.callbacks.plugins import list_plugins
        from kdtrain.data.datasets import BUILT_IN
        from kdtrain.models.registry import ARCHITECTURES
    networks = list(ARCHITECTURES)
    return {
        "dataset": list(BUILT_IN),
        "recipe": [*(recipe.name for recipe in list_recipes()), NO_RECIPE],
        "sort": list(SORTS),
        "plugin": [plugin.name for plugin in list_plugins()],
        **dict.fromkeys(("arch", "archs", "teacher_arch", "student_arch"), networks),
    }
