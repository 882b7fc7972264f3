"""The charts and the confusions of ``report.html``, computed from a comparison's figures."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain import reliability
from kdtrain.report.page.charts import Axis, confusions, curves, differences, reliability_chart

numbers = st.floats(-1e6, 1e6)


def history(*errors: float) -> list[dict[str, float]]:
    return [{"epoch": epoch, "error": error} for epoch, error in enumerate(errors, 1)]


def positions(points: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in points.split())]


@given(numbers, numbers, st.booleans(), st.lists(st.floats(0, 1), min_size=2))
def test_axis_keeps_order_and_bounds(first: float, second: float, log: bool, shares: list[float]) -> None:
    low, high = sorted((abs(first), abs(second)) if log else (first, second))
    if high - low < 1e-6 * max(1.0, abs(high)) or (log and low < 1e-6):
        return
    axis = Axis(low, high, 200, 10, log)
    values = sorted(low + share * (high - low) for share in shares)
    placed = [axis.place(value) for value in values]
    assert placed == sorted(placed, reverse=True)
    assert all(10 <= position <= 200 for position in placed)
    assert (axis.place(low - 1e-3 * abs(low)), axis.place(high + 1)) == (200, 10)


@given(numbers, numbers, st.booleans())
def test_ticks_lie_at_the_values_of_their_texts(first: float, second: float, log: bool) -> None:
    low, high = sorted((abs(first), abs(second)) if log else (first, second))
    if high - low < 1e-3 * max(1.0, abs(high)) or (log and low < 1e-3):
        return
    axis = Axis(low, high, 0, 400, log)
    ticks = axis.ticks
    assert 1 <= len(ticks) <= 20
    for position, text in ticks:
        assert position == pytest.approx(axis.place(float(text)), abs=1.5)


def test_curve_is_the_mean_within_the_band_of_its_seeds() -> None:
    chart = curves({"student": [history(0.4, 0.2), history(0.2, 0.1, 0.1)]}, "error", 100)
    assert chart is not None
    (line,) = chart.lines
    mean, band = positions(line.mean), positions(line.band)
    assert [x for x, _ in mean] == [chart.x.place(1), chart.x.place(2)], "epochs that every seed reached"
    assert [y for _, y in mean] == [chart.y.place(30), chart.y.place(15)]
    assert [y for _, y in band] == [chart.y.place(value) for value in (40, 20, 10, 20)]
    assert line.last == mean[-1]
    assert chart.y.log, "40 is 4 times 10"


def test_log_axis_only_where_it_can_and_does_help() -> None:
    for errors, log in (((0.4, 0.0), False), ((0.4, 0.3), False), ((0.9, 0.01), True)):
        chart = curves({"student": [history(*errors)]}, "error")
        assert chart is not None
        assert chart.y.log == log
        assert chart.lines[0].band == ""
    assert curves({"teacher": [[]], "student": [[]]}, "error") is None
    student_only = curves({"teacher": [[]], "student": [history(0.0)]}, "error")
    assert student_only is not None
    assert [line.model for line in student_only.lines] == ["student"]


def test_differences_share_an_axis_that_shows_zero() -> None:
    gain = {"mean": 2.0, "low": 1.0, "high": 3.0}
    one_seed = {"low_percentage_points": -4.0, "high_percentage_points": 8.0}
    gains = [{"percentage_points": 1.5}, {"percentage_points": 2.5}]
    charts = differences(
        [
            {"gain_percentage_points": gain, "one_seed": None, "gains": gains},
            {"gain_percentage_points": {**gain, "low": None}, "one_seed": one_seed, "gains": gains[:1]},
            {"gain_percentage_points": {**gain, "low": None}, "one_seed": None, "gains": gains[:1]},
        ]
    )
    assert {chart.x for chart in charts} == {charts[0].x}
    x = charts[0].x
    assert x.low < -4
    assert x.high > 8
    assert "0" in [text for _, text in x.ticks]
    assert charts[0].interval == (x.place(1), x.place(3))
    assert charts[1].interval == (x.place(-4), x.place(8))
    assert charts[2].interval is None
    assert charts[0].points == (x.place(1.5), x.place(2.5))
    assert charts[0].mean == x.place(2)


def test_reliability_bars_are_the_bins_that_hold_images() -> None:
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(500, 4)) * 2, random.integers(0, 4, 500)
    bins = reliability(logits, labels)
    chart = reliability_chart(bins)
    filled = np.flatnonzero(bins.counts)
    assert len(chart.bars) == len(filled) < 15
    for number, (left, accuracy, confidence, _) in zip(filled, chart.bars, strict=True):
        assert left == pytest.approx(chart.x.place(number / 15), abs=0.1)
        assert accuracy == chart.y.place(bins.accuracy[number])
        assert chart.x.low + number / 15 <= bins.confidence[number] <= (number + 1) / 15
        assert confidence == chart.y.place(bins.confidence[number])
    assert np.argmax([bar[3] for bar in chart.bars]) == np.argmax(bins.counts[filled])


def test_confusions_are_means_over_the_networks() -> None:
    labels = np.array([0, 0, 1, 2, 2, 2])
    predictions = ([0, 1, 1, 2, 1, 1], [0, 1, 1, 2, 2, 0])
    means = confusions([np.eye(3, dtype=np.float32)[row] for row in predictions], labels)
    assert means.matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0.5, 1, 1.5]]
    assert means.most == 1
    assert means.pairs == ((0, 1, 1), (2, 1, 1), (2, 0, 0.5))
    perfect = confusions([np.eye(3, dtype=np.float32)], np.arange(3))
    assert (perfect.most, perfect.pairs) == (1, ())
