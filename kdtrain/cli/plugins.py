"""The command ``kdtrain plugins``: the installed plugins and their options."""

from __future__ import annotations

import argparse
import dataclasses
import json

from rich.text import Text

from kdtrain.cli.output import Output
from kdtrain.experiment.plugin_loader import list_plugins


def run(options: argparse.Namespace) -> int:
    """Lists the callbacks that can be plugged in, with their source, arguments and hooks."""
    plugins = list_plugins()
    if options.json:
        print(json.dumps([dataclasses.asdict(plugin) for plugin in plugins], indent=2))
        return 0
    output = Output()
    for plugin in plugins:
        output.text(Text.assemble((plugin.name, "bold"), f"({plugin.arguments})  {plugin.summary}"))
        output.text(f"    hooks: {', '.join(plugin.hooks) or 'none'}    from: {plugin.source}")
    if not plugins:
        output.text("No plugin is installed. A file of your own: --plugin FILE.py:CLASS")
    return 0
