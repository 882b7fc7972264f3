"""The command ``kdtrain card``: a model card in Markdown."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from kdtrain.cli.output import Stdout
from kdtrain.runtime.signals import defer_signals


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.description = (
        "Write a model card in Markdown, with the front matter that model hubs read. It says what is in the "
        "checkpoint, in the files of its run, and in an ONNX file beside it; nothing else."
    )
    parser.add_argument("model", type=Path, metavar="MODEL", help="a .safetensors file")
    parser.add_argument(
        "--output", "--out", type=Path, metavar="FILE", help="file to write, such as README.md [printed]"
    )
    parser.add_argument(
        "--license",
        metavar="ID",
        help="identifier of the licence that you give the model, such as apache-2.0 [unknown]",
    )


def run(options: argparse.Namespace) -> int:
    """Writes a model card to a file, or prints it."""
    with defer_signals():  # an interrupted import may come out as another error
        from kdtrain.experiment.history.model_card import card
    text = card(options.model, license=options.license, output=options.output)
    if options.output is None:
        sys.stdout.write(text)
    else:
        Stdout().text(f"{options.output}: the card of {options.model}")
    return 0
