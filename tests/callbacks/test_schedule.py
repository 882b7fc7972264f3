"""Learning-rate schedules against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain import LearningRateSchedule, UsageError
from kdtrain.callbacks.schedule import SCHEDULES, learning_rate
from tests.conftest import Fit
from tests.engine.fits import Notes


@given(st.sampled_from(SCHEDULES), st.floats(1e-6, 10), st.integers(1, 5000))
def test_rates_stay_between_0_and_the_peak_and_reach_it(schedule: str, peak: float, total: int) -> None:
    rates = np.array([learning_rate(schedule, peak, step, total) for step in range(total)])
    assert (rates >= 0).all()
    assert (rates <= peak * (1 + 1e-12)).all()
    if total > 20:
        assert rates.max() > 0.97 * peak


def test_one_cycle_goes_up_for_three_tenths_of_the_steps_and_then_down_to_almost_nothing() -> None:
    rates = [learning_rate("one_cycle", 1.0, step, 1001) for step in range(1001)]
    assert rates[0] == pytest.approx(1 / 25)
    assert rates[150] == pytest.approx((1 + 1 / 25) / 2)
    assert rates[300] == pytest.approx(1.0)
    assert rates[650] == pytest.approx(0.5, abs=1e-5)
    assert rates[1000] == pytest.approx(1 / 250_000)
    assert (np.diff(rates[:301]) > 0).all()
    assert (np.diff(rates[300:]) < 0).all()


def test_cosine_and_constant() -> None:
    assert [learning_rate("cosine", 2.0, step, 5) for step in range(5)] == pytest.approx(
        [2.0, 1 + np.sqrt(0.5), 1.0, 1 - np.sqrt(0.5), 0.0]
    )
    assert {learning_rate("constant", 0.3, step, 100) for step in range(100)} == {0.3}


def test_each_step_uses_its_own_rate(fit: Fit) -> None:
    notes = Notes()
    fit(notes, LearningRateSchedule("one_cycle", 0.01), epochs=3)
    rates = [event.learning_rate for event in notes.batches]
    assert rates == [learning_rate("one_cycle", 0.01, step, 12) for step in range(12)]


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(UsageError, match="did you mean 'cosine'"):
        LearningRateSchedule("cosin", 0.1)


def test_a_schedule_with_restarts_has_a_whole_cycle_in_each_part(fit: Fit) -> None:
    notes = Notes()
    fit(notes, LearningRateSchedule("one_cycle", 0.01, restarts=(1, 3, 9)), epochs=4)
    rates = [event.learning_rate for event in notes.batches]
    parts = [
        [learning_rate("one_cycle", 0.01, step, 4 * epochs) for step in range(4 * epochs)]
        for epochs in (1, 2, 1)
    ]
    assert rates == [rate for part in parts for rate in part]
