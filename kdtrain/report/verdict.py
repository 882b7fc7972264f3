"""Sentences about a comparison that claim no more than the figures support."""

from __future__ import annotations

from kdtrain.metrics.statistics import CONFIDENCE, MOST_SEEDS, POWER, Interval, McNemar
from kdtrain.report.comparison import Comparison, Difference, OneSeedTest
from kdtrain.report.teacher_lead import far_apart_sentence


def verdict(comparison: Comparison) -> str:
    """Returns one sentence: distillation helped, hurt, or has no distinguishable effect."""
    difference = comparison.distillation
    gain, points = difference.gain, f"{gain_text(difference.gain)} points"
    change = _change(difference, comparison.summaries["student"].errors.mean)
    if difference.one_seed is not None:
        return f"One seed: {points} ({change}); {_pair_text(difference, difference.one_seed)}."
    if gain.sd == 0:
        return (
            f"Not distinguishable: {points}, {interval_text(gain)}; "
            "without any spread there is no interval to judge by."
        )
    if difference.outcome == "undecided":
        return (
            f"Not distinguishable with {gain.n} seeds: {points} ({change} on average), "
            f"but the {interval_text(gain)} includes zero; {_guess(difference)}."
        )
    return f"Distillation {difference.outcome}: {points}, {interval_text(gain)} ({change} on average)."


def headline(comparison: Comparison) -> str:
    """Returns the beginning of the verdict: the outcome, the gain and its interval."""
    difference = comparison.distillation
    gain, points = difference.gain, f"{gain_text(difference.gain)} points"
    if difference.one_seed is not None:
        interval = f"{100 * CONFIDENCE:.0f} % interval {difference_bounds(difference)}"
        return f"One seed: {points}, {interval} over the test images."
    if difference.outcome != "undecided":
        return f"Distillation {difference.outcome}: {points}, {interval_text(gain)}."
    return f"Not distinguishable: {points}, {interval_text(gain)}."


def gap_sentence(comparison: Comparison) -> str:
    """Returns one sentence: the share of the gap between student and teacher that distillation closes."""
    teacher = comparison.summaries["teacher"].accuracy.mean
    student = comparison.summaries["student"].accuracy.mean
    share = comparison.gap_closed
    if share is None:
        return (
            f"There is no gap to close: the teacher ({teacher:.2f} %) is no better than the student "
            f"({student:.2f} %)."
        )
    gap = f"the {teacher - student:.2f} points between student and teacher"
    unsure = "" if comparison.distillation.outcome != "undecided" else ", with the same doubt"
    if share < 0:
        return f"The student falls behind by a further {-100 * share:.0f} % of {gap}{unsure}."
    beyond = ": the student is ahead of its teacher" if share > 1 else ""
    return f"That is {100 * share:.0f} % of {gap}{beyond}{unsure}."


def teacher_far_apart(comparison: Comparison) -> str | None:
    """Returns a warning if held-out and test accuracy of the teacher are far apart, else None."""
    lead = comparison.teacher_lead
    if lead is None:
        return None
    test = next(result.test for result in comparison.results if result.model == "teacher")
    return far_apart_sentence(
        "teacher",
        (lead.accuracy, lead.images),
        (test.accuracy, test.images),
        may_have_seen=lead.may_have_seen,
    )


def difference_text(difference: Difference) -> str:
    """Returns ``"student_kd - student"``."""
    return f"{difference.model} - {difference.baseline}"


def difference_bounds(difference: Difference) -> str:
    """Returns the interval of the gain, ``"0.10 to 0.26"``: over seeds, or for a single seed over images."""
    one_seed = difference.one_seed
    if one_seed is None:
        return bounds_text(difference.gain)
    return bounds_text(Interval(difference.gain.mean, None, one_seed.low, one_seed.high, 1))


def count_text(errors: float) -> str:
    """Returns a mean number of errors, ``"18"`` or ``"18.2"``."""
    return f"{errors:.0f}" if float(errors).is_integer() else f"{errors:.1f}"


def _change(difference: Difference, errors: float) -> str:
    removed = difference.errors_removed
    if removed < 0:
        return f"{count_text(-removed)} errors more than the student's {count_text(errors)}"
    return f"{count_text(removed)} of {count_text(errors)} errors removed"


def _pair_text(difference: Difference, test: OneSeedTest) -> str:
    """Returns the test of a single pair of networks as text; it does not cover the spread over seeds."""
    differ = test.mcnemar.p_value < 1 - CONFIDENCE
    outcome = "these two networks differ" if differ else "these two networks cannot be told apart"
    return (
        f"{outcome} on such images ({p_text(test.mcnemar)}, {100 * CONFIDENCE:.0f} % interval "
        f"{difference_bounds(difference)}), which says nothing yet of the method: `--seeds 5` would"
    )


def _guess(difference: Difference) -> str:
    power = f"{100 * POWER:.0f} % power"
    if difference.seeds_needed is None:
        return f"a gain as small beside its spread would take more than {MOST_SEEDS} seeds to show ({power})"
    return (
        f"if mean and spread stay as they are, a rough guess from {difference.gain.n}, "
        f"it would take about {difference.seeds_needed} seeds to show ({power})"
    )


def gain_text(interval: Interval) -> str:
    """Returns the mean with its sign, ``"+0.18"``; zero has none."""
    decimals = _decimals(interval)
    return f"{interval.mean:+.{decimals}f}" if round(interval.mean, decimals) else "0"


def bounds_text(interval: Interval) -> str:
    """Returns ``"0.10 to 0.26"``, or ``""`` without an interval or with one of no width."""
    if interval.low is None or interval.high is None or interval.sd == 0:
        return ""
    decimals = _decimals(interval)
    # Adding zero turns a rounded "-0.00" into "0.00".
    return " to ".join(
        f"{round(bound, decimals) + 0.0:.{decimals}f}" for bound in (interval.low, interval.high)
    )


def interval_text(interval: Interval) -> str:
    """Returns ``"95 % interval 0.10 to 0.26 over 5 seeds"``, or the reason why there is no interval."""
    if interval.n == 1:
        return "one seed"
    if interval.sd == 0:
        return f"the same in each of {interval.n} seeds"
    return f"{100 * CONFIDENCE:.0f} % interval {bounds_text(interval)} over {interval.n} seeds"


def _decimals(interval: Interval) -> int:
    """Returns 2, or up to 4 if a number other than zero would be rounded to zero."""
    shown = [number for number in (interval.mean, interval.low, interval.high) if round(number or 0, 4)]
    return next((decimals for decimals in (2, 3) if all(round(number or 0, decimals) for number in shown)), 4)


def p_text(test: McNemar) -> str:
    """Returns ``"McNemar's exact p = 0.031"``."""
    return f"McNemar's exact p {p_value_text(test.p_value)}"


def p_value_text(p_value: float) -> str:
    """Returns ``"= 0.031"``, or ``"< 0.0001"`` for a smaller one."""
    return f"= {p_value:.2g}" if p_value >= 0.0001 else "< 0.0001"
