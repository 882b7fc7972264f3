"""The chart of accuracy over size, from compare.json."""

from __future__ import annotations

from typing import Any

import pytest

from kdtrain import DataError
from scripts.accuracy_over_size import SizePanel, size_figure


def interval(mean: float, half: float | None = None) -> dict[str, float | int | None]:
    if half is None:
        return {"mean": mean, "sd": None, "low": None, "high": None, "n": 1}
    return {"mean": mean, "sd": half, "low": mean - half, "high": mean + half, "n": 5}


def document(parameters: int = 50_000) -> dict[str, Any]:
    return {
        "summaries": {
            "teacher": {"parameters": 1_000_000, "test_accuracy_percent": interval(94.0)},
            "student_kd": {"parameters": parameters, "test_accuracy_percent": interval(93.0, 0.25)},
            "student": {"parameters": parameters, "test_accuracy_percent": interval(92.5, 0.5)},
        },
        "differences": [
            {
                "model": "student_kd",
                "baseline": "student",
                "gain_percentage_points": interval(0.5, 0.1),
            }
        ],
    }


def test_marks_stand_at_size_and_accuracy_with_intervals_over_seeds() -> None:
    (axes,) = size_figure([SizePanel.from_json("Some images", document())]).axes
    teacher, student, distilled = axes.containers
    (x,), (y,) = teacher[0].get_data()
    assert (x, y, len(teacher[2])) == (1_000_000, 94.0, 0)
    for bars, mean, half in ((student, 92.5, 0.5), (distilled, 93.0, 0.25)):
        (x,), (y,) = bars[0].get_data()
        assert (x, y) == (pytest.approx(50_000, rel=0.25), mean)
        assert bars[2][0].get_segments()[0][:, 1] == pytest.approx([mean - half, mean + half])
    assert axes.get_xscale() == "log"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["50,000", "1,000,000"]
    written = " ".join(text.get_text() for text in axes.texts)
    assert "+0.50 points, 95 % interval 0.40 to 0.60 over 5 seeds" in written


def test_network_of_unknown_size_has_no_place() -> None:
    with pytest.raises(DataError, match="Some images: the number of parameters of student is unknown"):
        SizePanel.from_json("Some images", document(parameters=0))


def test_another_file_is_refused_with_what_it_lacks() -> None:
    with pytest.raises(DataError, match=r"no compare\.json .*'summaries'"):
        SizePanel.from_json("Some images", {"version": 1})
