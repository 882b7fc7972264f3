"""The command ``kdtrain models``: networks with their parameters and multiply-adds."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from kdtrain.cli.flags import add_setting_flag, json_flag
from kdtrain.cli.output import Stdout
from kdtrain.errors import size_text
from kdtrain.report.table import Column, Table
from kdtrain.runtime.signals import defer_signals

if TYPE_CHECKING:  # the help needs this file, but no OneFlow
    from kdtrain.models.list_models import NetworkInfo


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.description = (
        "List networks with their trainable parameters and their multiply-adds for one image. Only "
        "multiply-adds of linear layers and convolutions are counted; there are twice as many FLOPs."
    )
    parser.add_argument(
        "archs",
        nargs="*",
        metavar="ARCH",
        help="networks to list: names, MODULE:FACTORY or FILE.py:FACTORY, or patterns such as "
        "'flowvision:resnet*' [kdtrain's own]",
    )
    parser.add_argument(
        "--dataset",
        default="mnist",
        metavar="NAME",
        help="data set whose image shape and number of classes the networks are built for [mnist]",
    )
    add_setting_flag(parser, "data_dir", default=None)
    parser.add_argument(
        "--image-shape",
        metavar="C,H,W",
        help="channels, height and width in pixels, in place of a data set's; with 10 classes. "
        "Such as 3,32,32",
    )
    json_flag(parser, "a JSON list")


def run(options: argparse.Namespace) -> int:
    """Lists networks with their parameters and multiply-adds."""
    with defer_signals():  # an interrupted import may come out as another error
        from kdtrain.models.list_models import images_for, measure_networks
        from kdtrain.models.zoo import CLASSIFIERS, PREFIX
    wanted = None if options.image_shape is None else _numbers(options.image_shape)
    shape, classes = images_for(options.dataset, options.data_dir, wanted)
    rows = measure_networks(options.archs, shape, classes)
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return 0
    output = Stdout()
    output.print(networks_table(rows, f"Images of {size_text(shape)} in {classes} classes"))
    for row in rows:
        if row.error:
            output.sentence(f"{row.arch}: {row.error}")
    if not options.archs:
        output.text(f"Also {len(CLASSIFIERS)} of flowvision's: kdtrain models '{PREFIX}*'")
        output.text("And your own: FILE.py:FACTORY or MODULE:FACTORY")
    return 0


def networks_table(rows: Sequence[NetworkInfo], title: str) -> Table:
    """Returns a row for each network; a dash stands for what cannot be measured."""
    columns = (Column("network", words=True), Column("parameters"), Column("multiply-adds\nper image"))
    table = Table(*columns, title=title)
    for row in rows:
        figures = [f"{number:,}" if number else "-" for number in (row.parameters, row.multiply_adds)]
        table.row(row.arch, *figures)
    return table


def _numbers(text: str) -> tuple[int | str, ...]:
    """Returns the numbers in ``3,32,32``; a word that is none, or far too large, stays as it is."""
    return tuple(int(word) if word.isdecimal() and len(word) < 7 else word for word in text.split(","))
