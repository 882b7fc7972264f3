"""The command ``kdtrain models``: networks with their parameters and multiply-adds."""

from __future__ import annotations

import argparse
import fnmatch
import json
from typing import Any

from rich.table import Table

from kdtrain.cli.output import Output
from kdtrain.data.datasets import load_dataset
from kdtrain.errors import UsageError, size_text
from kdtrain.models.networks import ImageShape
from kdtrain.models.registry import ARCHITECTURES, build_model, count_multiply_adds, count_parameters
from kdtrain.models.zoo import CLASSIFIERS, PREFIX
from kdtrain.runtime.console import with_progress_bar
from kdtrain.runtime.limits import LARGEST_SIDE


def run(options: argparse.Namespace) -> int:
    """Lists networks with their parameters and multiply-adds."""
    shape, classes = _images(options)
    archs = _expand(options.archs or [*ARCHITECTURES])
    rows = [
        _measure(arch, shape, classes) for arch in with_progress_bar(archs, "networks", len(archs), "network")
    ]
    if options.json:
        print(json.dumps(rows, indent=2))
        return 0
    table = Table(title=f"Images of {size_text(shape)} in {classes} classes", title_justify="left")
    table.add_column("network")
    table.add_column("parameters", justify="right")
    table.add_column("multiply-adds per image", justify="right")
    for row in rows:
        figures = [f"{row[name]:,}" if row[name] else "-" for name in ("parameters", "multiply_adds")]
        table.add_row(row["arch"], *figures)
    output = Output()
    output.print(table)
    for row in rows:
        if row["error"]:
            output.text(f"{row['arch']}: {row['error']}")
    if not options.archs:
        output.text(f"Also {len(CLASSIFIERS)} of flowvision's: kdtrain models '{PREFIX}*'")
        output.text("And your own: FILE.py:FACTORY or MODULE:FACTORY")
    return 0


def _expand(words: list[str]) -> list[str]:
    """Returns the architectures that match names and patterns."""
    archs = [*ARCHITECTURES, *(PREFIX + name for name in CLASSIFIERS)]
    chosen: list[str] = []
    for word in words:
        matching = fnmatch.filter(archs, word) if set(word) & set("*?[") else [word]
        if not matching:
            raise UsageError(f"there is no network like {word!r}.")
        chosen += matching
    return list(dict.fromkeys(chosen))


def _measure(arch: str, shape: ImageShape, classes: int) -> dict[str, Any]:
    row: dict[str, Any] = {"arch": arch, "parameters": None, "multiply_adds": None, "error": None}
    try:
        model = build_model(arch, shape, classes)
    except UsageError as error:
        if arch not in ARCHITECTURES and arch.removeprefix(PREFIX) not in CLASSIFIERS:
            raise
        return row | {"error": str(error)}  # not made for images of this size
    return row | {
        "parameters": count_parameters(model),
        "multiply_adds": count_multiply_adds(model, shape),
    }


def _images(options: argparse.Namespace) -> tuple[ImageShape, int]:
    """Returns the shape of the images and the number of classes."""
    if options.image_shape is None:
        data = load_dataset(options.dataset, options.data_dir)
        return data.image_shape, data.num_classes
    words = options.image_shape.split(",")
    numbers = [int(word) for word in words if word.isdecimal() and 1 <= int(word[:6]) <= LARGEST_SIDE]
    if len(words) != 3 or len(numbers) != 3:
        raise UsageError(
            f"--image-shape {options.image_shape}: give channels, height and width, each from 1 to "
            f"{LARGEST_SIDE}, such as 3,32,32."
        )
    return (numbers[0], numbers[1], numbers[2]), 10
