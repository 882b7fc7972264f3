"""The time left: from measured epochs, the fits to come and the cores, and never an error."""

from __future__ import annotations

import time

import pytest

from kdtrain.runtime import time_left
from kdtrain.runtime.time_left import Plan, PlannedFit, duration


def finish(plan: Plan, key: str, epochs: int, seconds: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets epochs of a fit take ``seconds`` each."""
    for _ in range(epochs):
        now = time.monotonic()
        monkeypatch.setattr(time, "monotonic", lambda now=now: now + seconds)
        plan.finish_epoch(key)


@pytest.fixture
def plan(monkeypatch: pytest.MonkeyPatch) -> Plan:
    """A teacher on both cores, then four students side by side."""
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    students = [PlannedFit(f"student {n}", "student", 10) for n in range(4)]
    return Plan([[PlannedFit("teacher", "teacher", 5, 2)], students], cores=2)


def test_nothing_is_said_before_anything_is_known(plan: Plan) -> None:
    assert (plan.text(), plan.line()) == ("", "")
    plan.begin("teacher", 0)
    assert plan.text() == ""
    assert Plan([]).line() == ""


def test_fits_that_nobody_has_measured_make_it_a_lower_bound(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan.begin("teacher", 0)
    finish(plan, "teacher", 2, 10.0, monkeypatch)
    assert plan.text() == "more than 30 s left"
    finish(plan, "teacher", 3, 10.0, monkeypatch)
    plan.end("teacher")
    assert plan.text() == ""


def test_fits_to_come_share_the_cores(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    plan.end("teacher")
    for key in ("student 0", "student 1"):
        plan.begin(key, 0)
    finish(plan, "student 0", 1, 3.0, monkeypatch)
    plan.finish_epoch("student 1")
    assert plan.text() == "about 55 s left"  # 9 epochs, then the 10 of the other two
    assert plan.line() == "1 of 5 fits done, about 55 s left"
    for key in ("student 0", "student 1"):
        plan.end(key)
    assert plan.line() == "3 of 5 fits done, about 30 s left"


def test_a_resumed_fit_has_fewer_epochs_to_go(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in ("teacher", "student 1", "student 2", "student 3"):
        plan.end(key)
    plan.begin("student 0", 7)
    finish(plan, "student 0", 1, 4.0, monkeypatch)
    assert plan.text() == "about 8 s left"


def test_early_stopping_makes_it_an_upper_bound_and_a_deadline_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(time, "monotonic", lambda: 1000.0)
    fits = [[PlannedFit("a", "student", 3)]]
    plan = Plan(fits, at_most=True, deadline=1061.0)
    assert plan.text() == "at most 1 min left"
    plan.begin("a", 0)
    finish(plan, "a", 1, 5.0, monkeypatch)
    assert plan.text() == "at most 10 s left"
    later = Plan(fits, paces=plan.paces())
    assert later.text() == "about 15 s left"


def test_a_failing_estimate_is_no_error(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    plan.begin("teacher", 0)
    finish(plan, "teacher", 1, 1.0, monkeypatch)
    plan._rows.clear()  # the estimate then meets fits that it does not know
    time_left.set_plan(plan)
    try:
        with time_left.carrying_out("student 9"):
            time_left.note_begin(0)
            time_left.note_epoch()
            assert time_left.fit_text() == time_left.line() == ""
    finally:
        time_left.set_plan(None)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "1 s"),
        (9.4, "9 s"),
        (42.0, "40 s"),
        (58.9, "1 min"),
        (205.0, "3 min 20 s"),
        (3580.0, "1 h"),
        (4800.0, "1 h 20 min"),
    ],
)
def test_durations_are_rounded(seconds: float, text: str) -> None:
    assert duration(seconds) == text
