"""The command ``kdtrain bias``: raised biases for classes that a student was trained without."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from kdtrain.cli.flags import choice, device_flag, json_flag
from kdtrain.cli.output import Output
from kdtrain.report.table import Column, Table
from kdtrain.runtime.signals import defer_signals


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN_DIR",
        help="run directory of a student that was trained with `kdtrain fit --omit-class`",
    )
    parser.add_argument(
        "--by",
        **choice("transfer", "validation", "labels"),
        default="validation",
        help="what the biases are fitted to: the teacher's mean probability of these classes on the "
        "student's training images (transfer) or on the validation images (validation), or the labels of "
        "the validation images (labels) [validation]",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="checkpoint to write [RUN_DIR/checkpoints/bias_BY.safetensors]",
    )
    device_flag(parser)
    json_flag(parser, "one JSON object")


def run(options: argparse.Namespace) -> int:
    """Raises the biases of a student's omitted classes, and prints the accuracy before and after."""
    with defer_signals():  # an interrupted import may come out as another error
        from kdtrain.experiment.bias import bias
    raised = bias(options.run, by=options.by, output=options.output, device=options.device)
    before, after = raised.before, raised.after
    if options.json:
        answer = {
            "run": str(options.run),
            "classes": list(raised.classes),
            "by": options.by,
            "shift": raised.shift,
            "validation_errors": {"before": before.errors, "after": after.errors, "images": after.images},
            "checkpoint": str(raised.path),
        }
        print(json.dumps(answer, indent=2))
        return 0
    columns = (Column("bias", words=True), Column("held-out\naccuracy %"), Column("errors"))
    table = Table(*columns, title=f"Bias of {', '.join(raised.classes)} raised by {raised.shift:.2f}")
    for name, figures in (("before", before), ("after", after)):
        table.row(name, f"{100 * figures.accuracy:.2f}", f"{figures.errors:,}")
    output = Output()
    output.print(table)
    output.text(f"Weights: {raised.path}")
    return 0
