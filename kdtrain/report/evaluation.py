"""The report of a network's evaluation: figures and confusion matrix, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from kdtrain.metrics.evaluation import Evaluation

_MATRIX_CLASSES = 10  # a wider confusion matrix does not fit a terminal of 80 columns


def evaluation_report(evaluation: Evaluation, classes: Sequence[str]) -> RenderableType:
    """Returns a summary line and a table with a row per class.

    Up to 10 classes have the confusion matrix. With more, each row names the most frequent wrong prediction.
    """
    summary = Text(
        f"{100 * evaluation.accuracy:.2f} % accuracy, {evaluation.errors:,} errors in "
        f"{evaluation.images:,} images; cross-entropy {evaluation.cross_entropy:.4f} nats"
    )
    if len(classes) <= _MATRIX_CLASSES:
        return Group(summary, _matrix_table(evaluation, classes))
    return Group(summary, _class_table(evaluation, classes))


def _matrix_table(evaluation: Evaluation, classes: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    table.caption, table.caption_justify = "Rows: the truth. Columns: the prediction.", "left"
    # Long names do not fit above columns of four digits: both sides are numbered instead.
    numbered = any(len(name) > 4 for name in classes)
    labels = [f"{number} {name}" if numbered else name for number, name in enumerate(classes)]
    table.add_column("truth", max_width=16, overflow="fold")
    table.add_column("right %", justify="right", no_wrap=True)
    for number, name in enumerate(classes):
        table.add_column(Text(str(number) if numbered else name), justify="right", no_wrap=True)
    for truth, row in enumerate(evaluation.confusion.tolist()):
        cells = [
            Text(str(count) if count else "·", "bold" if truth == predicted else "" if count else "dim")
            for predicted, count in enumerate(row)
        ]
        table.add_row(Text(labels[truth]), _percent(evaluation.per_class_accuracy[truth]), *cells)
    return table


def _class_table(evaluation: Evaluation, classes: Sequence[str]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 2, 0, 0), pad_edge=False)
    table.add_column("class")
    table.add_column("images", justify="right")
    table.add_column("right %", justify="right")
    table.add_column("mistaken most often for")
    for truth, row in enumerate(evaluation.confusion):
        wrong = row.copy()
        wrong[truth] = 0
        rival = int(wrong.argmax())
        mistaken = Text(f"{classes[rival]} ({wrong[rival]:,})" if wrong[rival] else "")
        accuracy = _percent(evaluation.per_class_accuracy[truth])
        table.add_row(Text(classes[truth]), f"{row.sum():,}", accuracy, mistaken)
    return table


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def to_json(evaluation: Evaluation, classes: Sequence[str]) -> dict[str, Any]:
    """Returns plain values for ``json.dumps``, in full precision, with units in the key names."""
    return {
        "images": evaluation.images,
        "errors": evaluation.errors,
        "accuracy_fraction": evaluation.accuracy,
        "cross_entropy_nats": evaluation.cross_entropy,
        "calibration_error_fraction": evaluation.calibration_error,
        "per_class": [
            {"class": name, "images": int(row.sum()), "accuracy_fraction": accuracy}
            for name, row, accuracy in zip(
                classes, evaluation.confusion, evaluation.per_class_accuracy, strict=True
            )
        ],
        "confusion_matrix_truth_by_prediction": evaluation.confusion.tolist(),
    }
