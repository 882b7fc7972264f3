"""An evaluation's figures against plain loops, and its report at 80 columns."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain import KdtrainError
from kdtrain.errors import DataError
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.report.evaluation import evaluation_report, evaluation_to_json
from tests.report.drawings import printed

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def random_case(images: int, classes: int, seed: int, scale: float = 5.0) -> Arrays:
    random = np.random.default_rng(seed)
    logits = random.normal(0, scale, (images, classes)).astype(np.float32)
    return logits, random.integers(0, classes, images)


def rendered(evaluation: Evaluation, classes: list[str]) -> str:
    return printed(evaluation_report(evaluation, classes))


def by_loop(logits: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Returns the same figures, computed in plain Python."""
    classes = logits.shape[1]
    confusion = [[0] * classes for _ in range(classes)]
    loss = 0.0
    for row, truth in zip(logits.tolist(), labels.tolist(), strict=True):
        confusion[truth][max(range(classes), key=row.__getitem__)] += 1
        largest = max(row)
        loss += largest + math.log(sum(math.exp(z - largest) for z in row)) - row[truth]
    right = sum(confusion[c][c] for c in range(classes))
    return {
        "confusion": confusion,
        "errors": len(labels) - right,
        "accuracy": right / len(labels),
        "cross_entropy": loss / len(labels),
        "per_class": [row[c] / sum(row) if sum(row) else None for c, row in enumerate(confusion)],
    }


@given(
    st.integers(1, 60), st.integers(2, 12), st.integers(0, 2**32 - 1), st.sampled_from([0.1, 5.0, 1e3, 1e4])
)
def test_figures_are_those_of_a_plain_loop(images: int, classes: int, seed: int, scale: float) -> None:
    logits, labels = random_case(images, classes, seed, scale)
    evaluation, expected = Evaluation.from_logits(logits, labels), by_loop(logits, labels)
    assert evaluation.confusion.tolist() == expected["confusion"]
    assert evaluation.images == images
    assert evaluation.errors == expected["errors"] == int((~evaluation.correct).sum())
    assert evaluation.accuracy == expected["accuracy"]
    assert evaluation.cross_entropy == pytest.approx(expected["cross_entropy"], rel=1e-9, abs=1e-12)
    assert list(evaluation.per_class_accuracy) == expected["per_class"]


def test_rows_of_the_confusion_matrix_are_the_truth() -> None:
    evaluation = Evaluation.from_logits([[0.0, 9.0, 0.0]], [2])
    assert evaluation.confusion.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert evaluation.per_class_accuracy == (None, None, 0.0)


@pytest.mark.parametrize(
    ("logits", "labels", "error", "named"),
    [
        (np.zeros((0, 3)), np.zeros(0, int), DataError, r"\(0, 3\)"),
        (np.zeros((2, 3)), np.zeros(3, int), DataError, r"\(3,\)"),
        (np.zeros((2, 3)), np.array([0, 3]), DataError, "0 to 3 .* 3 classes"),
        (np.zeros((2, 3)), np.array([-1, 0]), DataError, "-1 to 0"),
        (np.array([[0.0, np.nan]]), np.array([0]), KdtrainError, "finite"),
        (np.array([[0.0, np.inf]]), np.array([0]), KdtrainError, "finite"),
    ],
)
def test_logits_and_labels_that_do_not_match_are_refused(
    logits: npt.NDArray[np.float64], labels: npt.NDArray[np.int64], error: type[Exception], named: str
) -> None:
    with pytest.raises(error, match=named):
        Evaluation.from_logits(logits, labels)


def test_report_shows_the_confusion_matrix_of_ten_classes_within_80_columns() -> None:
    logits, labels = random_case(60_000, 10, 0, 0.1)
    evaluation = Evaluation.from_logits(logits, labels)
    names = ["T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"]
    names += ["Sandal", "Shirt", "Sneaker", "[bold]Bag", "Ankle boot"]
    text = rendered(evaluation, names)
    assert all(len(line) <= 80 for line in text.splitlines())
    assert f"{evaluation.errors:,} errors in 60,000 images" in text
    assert f"cross-entropy {evaluation.cross_entropy:.4f}" in text
    assert "\x1b" not in text
    assert "…" not in text
    for number, name in enumerate(names):
        (line,) = [line for line in text.splitlines() if name in line]
        accuracy = evaluation.per_class_accuracy[number]
        assert accuracy is not None
        counts = [str(count) for count in evaluation.confusion[number].tolist()]
        assert line.removeprefix(f"{number}  {name}").split() == [f"{100 * accuracy:.2f}", *counts]


def test_report_of_digits_does_not_number_the_classes() -> None:
    logits, labels = random_case(500, 10, 1)
    text = rendered(Evaluation.from_logits(logits, labels), [str(digit) for digit in range(10)])
    assert "\n7      " in text
    assert "0 0" not in text


def test_report_of_many_classes_names_the_most_frequent_mistake() -> None:
    labels = np.array([3] * 5 + [4] * 3)
    logits = np.zeros((8, 20))
    for image, predicted in enumerate([3, 7, 7, 7, 9, 4, 4, 4]):
        logits[image, predicted] = 1.0
    text = rendered(Evaluation.from_logits(logits, labels), [f"class_{number}" for number in range(20)])
    lines = {line.split()[0]: line.split()[1:] for line in text.splitlines() if "class_" in line}
    assert len(lines) == 20
    assert lines["class_3"] == ["5", "20.00", "class_7", "(3)"]
    assert lines["class_4"] == ["3", "100.00"]
    assert lines["class_0"] == ["0", "-"]


def test_json_keeps_full_precision() -> None:
    logits, labels = random_case(50, 4, 2)
    labels[labels == 2] = 1
    evaluation = Evaluation.from_logits(logits, labels)
    back = json.loads(json.dumps(evaluation_to_json(evaluation, ["a", "b", "c", "d"]), allow_nan=False))
    assert back["images"] == 50
    assert back["errors"] == evaluation.errors
    assert back["accuracy_fraction"] == evaluation.accuracy
    assert back["cross_entropy_nats"] == evaluation.cross_entropy
    assert back["calibration_error_fraction"] == evaluation.calibration_error
    assert back["confusion_matrix_truth_by_prediction"] == evaluation.confusion.tolist()
    assert back["per_class"][2] == {"class": "c", "images": 0, "accuracy_fraction": None}
    assert back["per_class"][1]["images"] == int((labels == 1).sum())
