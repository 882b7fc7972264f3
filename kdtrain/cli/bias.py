"""The command ``kdtrain bias``: raised biases for classes that a student was trained without."""

from __future__ import annotations

import argparse
import json

from kdtrain.cli.output import Output
from kdtrain.experiment.bias import bias
from kdtrain.report.table import Column, Table


def run(options: argparse.Namespace) -> int:
    """Raises the biases of a student's omitted classes, and prints the accuracy before and after."""
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
