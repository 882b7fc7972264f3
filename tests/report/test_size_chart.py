"""The first chart of the report, and the sentence about the sizes of student and teacher."""

from __future__ import annotations

from typing import Any

import pytest

from kdtrain.report.page.render import code
from kdtrain.report.page.size_chart import ratio_text, short_count, size_chart
from kdtrain.report.verdict import p_value_text


def model(
    parameters: int, mean: float, low: float | None = None, high: float | None = None
) -> dict[str, Any]:
    return {"parameters": parameters, "test_accuracy_percent": {"mean": mean, "low": low, "high": high}}


def test_models_lie_at_their_size_and_accuracy_and_those_of_one_size_side_by_side() -> None:
    models = {"teacher": model(1_000_000, 99), "student_kd": model(1000, 98, 97.9, 98.1)}
    teacher, distilled, plain = size_chart(models | {"student": model(1000, 97)}).points
    assert teacher.x > plain.x > distilled.x
    assert teacher.y < distilled.y < plain.y
    assert distilled.ends is not None
    assert distilled.ends[1] < distilled.y < distilled.ends[0]
    assert teacher.ends is plain.ends is None


def test_a_wide_interval_is_cut_and_a_teacher_of_unknown_size_is_a_line() -> None:
    chart = size_chart(
        {"teacher": model(0, 99), "student": model(9, 98, 60, 130), "student_kd": model(9, 98)}
    )
    assert chart.ceiling is not None
    assert [point.model for point in chart.points] == ["student", "student_kd"]
    assert chart.points[0].caps == ()
    assert chart.y.low > 90


@pytest.mark.parametrize("percent", [0.0, 66.67, 100.0])
def test_models_that_are_all_alike_have_a_chart(percent: float) -> None:
    """Three held-out images, all recognised, are 100 % for every model and for the ends of its interval."""
    chart = size_chart({"teacher": model(9, percent), "student": model(2, percent, percent, percent)})
    assert chart.y.low <= percent <= chart.y.high
    assert chart.y.high - chart.y.low >= 1.0 - 1e-9
    assert [point.y for point in chart.points] == [chart.y.place(percent)] * 2
    assert chart.y.ticks


@pytest.mark.parametrize(
    ("student", "text"),
    [(50, "2.0 times smaller than"), (500, "5.0 times as large as"), (100, "1.0 times as large as")],
)
def test_a_student_larger_than_its_teacher_is_not_called_smaller(student: int, text: str) -> None:
    assert " ".join(ratio_text(100, student)) == f"{text} the teacher"


def test_texts_of_the_page() -> None:
    assert list(map(short_count, (500, 20_000, 1_500_000))) == ["500", "20 k", "1.5 M"]
    assert code("say `--seeds 5` < 9") == "say <code>--seeds 5</code> &lt; 9"
    assert [p_value_text(p) for p in (0.0312, 0.00004)] == ["= 0.031", "< 0.0001"]
