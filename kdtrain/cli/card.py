"""The command ``kdtrain card``: a model card in Markdown."""

from __future__ import annotations

import argparse
import sys

from kdtrain.cli.output import Output
from kdtrain.experiment.card import card


def run(options: argparse.Namespace) -> int:
    """Writes a model card to a file, or prints it."""
    text = card(options.model, license=options.license, output=options.output)
    if options.output is None:
        sys.stdout.write(text)
    else:
        Output().text(f"{options.output}: the card of {options.model}")
    return 0
