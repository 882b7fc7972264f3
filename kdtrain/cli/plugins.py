"""``kdtrain plugins``."""

from __future__ import annotations

import argparse
import dataclasses
import json

from rich.console import Console
from rich.markup import escape

from kdtrain.plugin_loader import list_plugins


def run(options: argparse.Namespace) -> int:
    """Lists what can be plugged in, from where, with which arguments and hooks."""
    plugins = list_plugins()
    if options.json:
        print(json.dumps([dataclasses.asdict(plugin) for plugin in plugins], indent=2))
        return 0
    console = Console(highlight=False)
    for plugin in plugins:
        console.print(
            f"[bold]{escape(plugin.name)}[/bold]({escape(plugin.arguments)})  {escape(plugin.summary)}"
        )
        console.print(f"    hooks: {', '.join(plugin.hooks) or 'none'}    from: {escape(plugin.source)}")
    if not plugins:
        console.print("No plugin is installed. A file of your own: --plugin FILE.py:CLASS")
    return 0
