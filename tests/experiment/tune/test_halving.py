"""Successive halving: budgets, rungs, the trials that go on, and what a limit of time allows."""

from __future__ import annotations

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain.errors import UsageError
from kdtrain.experiment.tune.halving import (
    Budget,
    Pace,
    affordable_trials,
    best_first,
    parse_budget,
    rung_epochs,
    rung_sizes,
)
from kdtrain.store.search_record import RungScore


def score(accuracy: float, cross_entropy: float) -> RungScore:
    return RungScore(1, accuracy, cross_entropy, (accuracy,), 1.0)


def test_a_budget_is_minutes_or_trials() -> None:
    assert parse_budget("20m") == Budget(seconds=1200)
    assert parse_budget("0.5m") == Budget(seconds=30)
    assert parse_budget("27") == Budget(trials=27)


@pytest.mark.parametrize(
    "text", ["", "m", "0", "-3", "2.5", "0m", "nanm", "infm", "20 minutes", "1001", "20h"]
)
def test_another_budget_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(UsageError, match=r"--budget is .*such as 20m, or a number of trials"):
        parse_budget(text)


@given(st.text())
def test_any_text_is_a_budget_or_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_budget(text) != Budget()


def test_rungs_are_a_ninth_a_third_and_all_of_the_epochs() -> None:
    assert rung_epochs(60) == (7, 20, 60)
    assert rung_epochs(9) == (1, 3, 9)
    assert rung_epochs(3) == (1, 3)
    assert rung_epochs(1) == (1,)


@given(st.integers(1, 100_000))
def test_rungs_rise_to_all_epochs(epochs: int) -> None:
    ends = rung_epochs(epochs)
    assert list(ends) == sorted(set(ends))
    assert ends[0] >= 1
    assert ends[-1] == epochs


def test_a_third_goes_on_and_one_at_least() -> None:
    assert rung_sizes(27, 3) == [27, 9, 3]
    assert rung_sizes(8, 3) == [8, 2, 1]
    assert rung_sizes(1, 2) == [1, 1]


def test_accuracy_decides_then_cross_entropy_then_the_number() -> None:
    scores = {0: score(0.9, 0.1), 1: score(0.95, 0.3), 2: score(0.95, 0.2), 4: score(0.95, 0.2)}
    assert best_first(scores) == [2, 4, 1, 0]


def test_fits_beyond_the_cores_wait_for_a_turn() -> None:
    pace = Pace(seconds=2.0, fits=2, slots=4)
    assert pace.rung_seconds(2, 10) == 20
    assert pace.rung_seconds(3, 10) == 40
    assert pace.measured(30.0, fits=5, epochs=3).seconds == 5


@given(
    st.integers(1, 200),
    st.integers(1, 500),
    st.floats(0.01, 1e5),
    st.builds(Pace, st.floats(0.01, 100), st.integers(1, 6), st.integers(1, 64)),
)
def test_as_many_trials_begin_as_the_time_allows(most: int, epochs: int, seconds: float, pace: Pace) -> None:
    ends = rung_epochs(epochs)

    def needed(trials: int) -> float:
        steps = [end - begin for begin, end in zip((0, *ends), ends, strict=False)]
        return sum(map(pace.rung_seconds, rung_sizes(trials, len(ends)), steps))

    trials = affordable_trials(most, ends, 0, seconds, pace)
    assert 0 <= trials <= most
    assert trials <= 1 or needed(trials) <= seconds
    assert trials == most or needed(trials + 1) > seconds
    if trials == 0:
        assert math.ceil(pace.fits / pace.slots) * ends[0] * pace.seconds > seconds
