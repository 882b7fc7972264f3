"""The command ``kdtrain plugins``: the installed plugins, their options and cards."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdtrain.cli.flags import json_flag
from kdtrain.cli.output import Stdout
from kdtrain.report.table import Column, Table
from kdtrain.runtime.signals import defer_signals

if TYPE_CHECKING:  # the help needs this file, but no OneFlow
    from kdtrain.callbacks.plugins import PluginInfo

_TITLES = {
    "soft targets": "Methods that replace the soft targets",
    "layers": "Methods on layers, beside the soft targets",
    "control": "Controls and regularisation, without a teacher",
    "observer": "Observers, which change nothing in a fit",
    "unusable": "Plugins that cannot be used",
}


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help="plugins to describe: when they help, what they cost, their options. Also FILE.py:CLASS "
        "[list all]",
    )
    json_flag(parser, "a JSON list")


def run(options: argparse.Namespace) -> int:
    """Lists the callbacks that can be plugged in, by kind, or describes some of them."""
    with defer_signals():  # an interrupted import may come out as another error
        from kdtrain.callbacks.plugins import list_plugins
    plugins = list_plugins(*options.names)
    if options.json:
        print(json.dumps([dataclasses.asdict(plugin) for plugin in plugins], indent=2))
        return 0
    output = Stdout()
    if options.names:
        for position, plugin in enumerate(plugins):
            if position:
                output.print("\n")
            _describe(plugin, output)
        return 0
    if plugins:
        output.print(_table(plugins))
        output.text("\nWith options: --plugin NAME,OPTION=VALUE")
        output.text("When they help, at what cost: kdtrain plugins NAME")
        output.text("Hooks and sources: kdtrain plugins --json")
    else:
        output.text("No plugin is installed.")
    output.text("A file of your own: --plugin FILE.py:CLASS")
    return 0


def _table(plugins: Sequence[PluginInfo]) -> Table:
    table = Table(*(Column(name, words=True) for name in ("plugin", "what it does", "options")))
    for kind, title in _TITLES.items():
        group = [plugin for plugin in plugins if plugin.kind == kind]
        if group:
            table.section(title)
        for plugin in group:
            source = f" ({plugin.source})" if kind == "unusable" else ""
            table.row(plugin.name, plugin.summary.replace("``", "") + source, _as_flag(plugin.arguments))
    return table


def _describe(plugin: PluginInfo, output: Stdout) -> None:
    """Prints a plugin's card, its options and a command that uses it."""
    output.text(plugin.name)
    card = Table(Column("Group", words=True), Column(_TITLES[plugin.kind], words=True))
    for name, text in {"What": plugin.summary, **plugin.card}.items():
        card.row(name, text.replace("``", ""))
    output.print(card)
    if plugin.kind == "unusable":
        return
    if plugin.options:
        options = Table(Column("option", words=True), Column("default"), Column("meaning", words=True))
        for option in plugin.options:
            default = "-" if option.default is None else option.default
            options.row(option.name, default, option.meaning.replace("``", ""))
        output.print()
        output.print(options)
    needed = "".join(f",{option.name}=..." for option in plugin.options if option.default is None)
    output.text(f"\nUse: kdtrain fit --mode student_kd --plugin {plugin.name}{needed}")


def _as_flag(arguments: str) -> str:
    """Returns ``weight=1.0`` for ``weight: float = 1.0``, as --plugin takes it."""
    return re.sub(r": [^,=]+ = ", "=", arguments)
