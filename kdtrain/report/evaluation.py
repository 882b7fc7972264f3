"""The report of a network's evaluation: figures and confusion matrix, as tables and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from kdtrain.metrics.evaluation import Evaluation
from kdtrain.report.table import Column, Table

_MATRIX_CLASSES = 10
"""Classes of the largest confusion matrix; a table of the most frequent mistakes says more about many."""


def evaluation_report(evaluation: Evaluation, classes: Sequence[str]) -> RenderableType:
    """Returns a summary line and a table with a row per class.

    Up to 10 classes have the confusion matrix, if it fits the terminal. Otherwise each row names the most
    frequent wrong prediction.
    """
    summary = Text(
        f"{100 * evaluation.accuracy:.2f} % accuracy, {evaluation.errors:,} errors in "
        f"{evaluation.images:,} images; cross-entropy {evaluation.cross_entropy:.4f} nats; balanced accuracy "
        f"{100 * evaluation.balanced_accuracy:.2f} %, macro-F1 {100 * evaluation.macro_f1:.2f} %"
    )
    table = _class_table(evaluation, classes)
    if len(classes) > _MATRIX_CLASSES:
        return Group(summary, "", table)
    return Group(summary, "", _FirstThatFits(_matrix_table(evaluation, classes), table))


class _FirstThatFits:
    """Two tables, of which the second is printed where the first one is too wide."""

    def __init__(self, wide: Table, narrow: Table) -> None:
        self.wide, self.narrow = wide, narrow

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.wide if self.wide.fits(options.max_width) else self.narrow


def _matrix_table(evaluation: Evaluation, classes: Sequence[str]) -> Table:
    # Long names do not fit above columns of four digits: rows and columns are numbered.
    numbered = any(len(name) > 4 for name in classes)
    table = Table(
        *([Column("")] if numbered else []),
        Column("true", words=True),
        Column("right\n%"),
        *(Column(str(number) if numbered else name) for number, name in enumerate(classes)),
        caption="Rows: the truth. Columns: the prediction.",
    )
    for truth, row in enumerate(evaluation.confusion.tolist()):
        cells = [
            Text(str(count) if count else "·", "bold" if truth == predicted else "" if count else "dim")
            for predicted, count in enumerate(row)
        ]
        label = [str(truth)] if numbered else []
        table.row(*label, classes[truth], _percent(evaluation.per_class_accuracy[truth]), *cells)
    return table


def _class_table(evaluation: Evaluation, classes: Sequence[str]) -> Table:
    table = Table(
        Column("class", words=True),
        Column("images", drop=1),
        Column("right\n%"),
        Column("mistaken most\noften for", words=True),
    )
    for truth, row in enumerate(evaluation.confusion):
        wrong = row.copy()
        wrong[truth] = 0
        rival = int(wrong.argmax())
        mistaken = f"{classes[rival]} ({wrong[rival]:,})" if wrong[rival] else ""
        accuracy = _percent(evaluation.per_class_accuracy[truth])
        table.row(classes[truth], f"{row.sum():,}", accuracy, mistaken)
    return table


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.2f}"


def evaluation_to_json(evaluation: Evaluation, classes: Sequence[str]) -> dict[str, Any]:
    """Returns plain values for ``json.dumps``, in full precision, with units in the key names."""
    return {
        "images": evaluation.images,
        "errors": evaluation.errors,
        "accuracy_fraction": evaluation.accuracy,
        "cross_entropy_nats": evaluation.cross_entropy,
        "calibration_error_fraction": evaluation.calibration_error,
        "balanced_accuracy_fraction": evaluation.balanced_accuracy,
        "macro_f1_fraction": evaluation.macro_f1,
        "per_class": [
            {"class": name, "images": int(row.sum()), "accuracy_fraction": accuracy}
            for name, row, accuracy in zip(
                classes, evaluation.confusion, evaluation.per_class_accuracy, strict=True
            )
        ],
        "confusion_matrix_truth_by_prediction": evaluation.confusion.tolist(),
    }
