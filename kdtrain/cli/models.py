"""The command ``kdtrain models``: networks with their parameters and multiply-adds."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence

from kdtrain.cli.output import Output
from kdtrain.errors import size_text
from kdtrain.models.list_models import NetworkInfo, images_for, measure_networks
from kdtrain.models.zoo import CLASSIFIERS, PREFIX
from kdtrain.report.table import Column, Table


def run(options: argparse.Namespace) -> int:
    """Lists networks with their parameters and multiply-adds."""
    wanted = None if options.image_shape is None else _numbers(options.image_shape)
    shape, classes = images_for(options.dataset, options.data_dir, wanted)
    rows = measure_networks(options.archs, shape, classes)
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return 0
    output = Output()
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
