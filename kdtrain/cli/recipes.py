"""The command ``kdtrain recipes``: settings for kinds of data, and what they were measured to give."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from kdtrain.cli.flags import json_flag
from kdtrain.cli.output import Stdout
from kdtrain.experiment.settings.config import Recipe, list_recipes, read_recipe
from kdtrain.report.table import Column, Table


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument(
        "name", nargs="?", metavar="NAME", help="print this recipe's file, which --config reads [list all]"
    )
    json_flag(parser, "a JSON list")


def run(options: argparse.Namespace) -> int:
    """Lists the recipes, or prints one as the file that it is."""
    recipes = [read_recipe(options.name)] if options.name else list_recipes()
    if options.json:
        print(json.dumps([_entry(recipe) for recipe in recipes], indent=2))
    elif options.name:
        sys.stdout.write(recipes[0].text)
    else:
        _list(recipes)
    return 0


def _list(recipes: list[Recipe]) -> None:
    table = Table(*(Column(name, words=True) for name in ("recipe", "for", "measured")))
    for position, recipe in enumerate(recipes):
        if position:
            table.section()
        table.row(recipe.name, recipe.title, recipe.measured)
    output = Stdout()
    output.print(table)
    output.sentence("\nWithout --recipe, fit takes mnist, fashion_mnist or pictures, by the data set.")
    output.text("A copy to change: kdtrain recipes NAME > mine.toml")


def _entry(recipe: Recipe) -> dict[str, Any]:
    return {
        "name": recipe.name,
        "title": recipe.title,
        "measured": recipe.measured,
        "settings": recipe.settings,
    }
