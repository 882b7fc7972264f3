"""What a network gets right and wrong on a data set: figures, confusion matrix, report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from scipy.special import log_softmax

from kdtrain.errors import DataError, KdtrainError

# Wider than this, a confusion matrix no longer fits a terminal of 80 columns.
_MATRIX_CLASSES = 10


@dataclass(frozen=True, eq=False)
class Evaluation:
    """A network's figures on one data set; made by ``Evaluation.from_logits``.

    Attributes:
        images: number of images.
        errors: number of images whose most probable class is not the true one.
        accuracy: fraction 0..1.
        cross_entropy: nats per image.
        per_class_accuracy: (classes) fraction 0..1 of each class's images; None where it has none.
        confusion: (classes, classes) counts; rows are the truth, columns the prediction.
        correct: (images,) whether each image was recognised.
    """

    images: int
    errors: int
    accuracy: float
    cross_entropy: float
    per_class_accuracy: tuple[float | None, ...]
    confusion: npt.NDArray[np.int64]
    correct: npt.NDArray[np.bool_]

    @classmethod
    def from_logits(cls, logits: npt.ArrayLike, labels: npt.ArrayLike) -> Evaluation:
        """Returns the figures for ``logits`` (images, classes) and ``labels`` (images,), in float64.

        Raises:
            DataError: no images, counts that differ, or a label outside 0..classes-1.
            KdtrainError: a logit is not finite.
        """
        scores, truth = _checked(logits, labels)
        images, classes = scores.shape
        predicted = scores.argmax(axis=1)
        correct = predicted == truth
        confusion = np.bincount(truth * classes + predicted, minlength=classes * classes)
        confusion = confusion.reshape(classes, classes).astype(np.int64)
        hits, totals = confusion.diagonal().tolist(), confusion.sum(axis=1).tolist()
        return cls(
            images=images,
            errors=images - int(correct.sum()),
            accuracy=int(correct.sum()) / images,
            cross_entropy=float(-log_softmax(scores, axis=1)[np.arange(images), truth].mean()),
            per_class_accuracy=tuple(
                hit / total if total else None for hit, total in zip(hits, totals, strict=True)
            ),
            confusion=confusion,
            correct=correct,
        )


def _checked(
    logits: npt.ArrayLike, labels: npt.ArrayLike
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    scores, truth = np.asarray(logits, dtype=np.float64), np.asarray(labels)
    if scores.ndim != 2 or scores.size == 0 or truth.shape != scores.shape[:1]:
        raise DataError(
            f"nothing to evaluate: outputs of shape {scores.shape} do not go with labels of shape "
            f"{truth.shape}; expected (images, classes) and (images,), with at least one image."
        )
    if truth.min() < 0 or truth.max() >= scores.shape[1]:
        raise DataError(
            f"labels {truth.min()} to {truth.max()} do not go with a network of {scores.shape[1]} classes; "
            "use the data set that the network was trained for."
        )
    if not np.isfinite(scores).all():
        raise KdtrainError("the network's outputs are not finite numbers: its weights are not usable.")
    return scores, truth.astype(np.int64)


def evaluation_report(evaluation: Evaluation, classes: Sequence[str]) -> RenderableType:
    """Returns a summary line and a table of the classes; up to 10 classes with the confusion matrix.

    With more classes, each row names the class that it is mistaken for most often.
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
    table.caption = "Rows: the truth. Columns: the prediction, in the same order."
    # Long names would not fit above columns of four digits: number both sides instead.
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
    """Returns plain values for ``json.dumps``, in full precision, units in the key names."""
    return {
        "images": evaluation.images,
        "errors": evaluation.errors,
        "accuracy_fraction": evaluation.accuracy,
        "cross_entropy_nats": evaluation.cross_entropy,
        "per_class": [
            {"class": name, "images": int(row.sum()), "accuracy_fraction": accuracy}
            for name, row, accuracy in zip(
                classes, evaluation.confusion, evaluation.per_class_accuracy, strict=True
            )
        ],
        "confusion_matrix_truth_by_prediction": evaluation.confusion.tolist(),
    }
