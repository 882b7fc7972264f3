"""What a comparison allows to say, in sentences that claim no more than the figures support."""

from __future__ import annotations

from kdtrain.metrics.statistics import CONFIDENCE, MOST_SEEDS, POWER, Interval, McNemar
from kdtrain.report.comparison import Comparison, Difference


def verdict(comparison: Comparison) -> str:
    """Returns one sentence: whether distillation helped, hurt, or cannot be told from doing nothing."""
    found = comparison.distillation
    gain, points = found.gain, f"{gain_text(found.gain)} points"
    change = _change(found, comparison.summaries["student"].errors.mean)
    if found.one_seed is not None:
        return f"One seed: {points} ({change}); {_one_pair(found)}."
    if gain.sd == 0:
        return (
            f"Not distinguishable: {points}, {interval_text(gain)}; "
            "without any spread there is no interval to judge by."
        )
    if found.outcome == "undecided":
        return (
            f"Not distinguishable with {gain.n} seeds: {points} ({change} on average), "
            f"but the {interval_text(gain)} includes zero; {_guess(found)}."
        )
    return f"Distillation {found.outcome}: {points}, {interval_text(gain)} ({change} on average)."


def gap_sentence(comparison: Comparison) -> str:
    """Returns what became of the distance between student and teacher."""
    teacher, student = (comparison.summaries[model].accuracy.mean for model in ("teacher", "student"))
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


def difference_text(difference: Difference) -> str:
    """Returns ``"student_kd - student"``."""
    return f"{difference.model} - {difference.baseline}"


def difference_bounds(difference: Difference) -> str:
    """Returns the interval of the gain, ``"0.10 to 0.26"``: over seeds, or over the images of one."""
    one = difference.one_seed
    if one is None:
        return bounds_text(difference.gain)
    return bounds_text(Interval(difference.gain.mean, None, one.low, one.high, 1))


def count_text(errors: float) -> str:
    """Returns a mean number of errors, ``"18"`` or ``"18.2"``."""
    return f"{errors:.0f}" if float(errors).is_integer() else f"{errors:.1f}"


def _change(found: Difference, errors: float) -> str:
    if found.errors_removed < 0:
        return f"{count_text(-found.errors_removed)} errors more than the student's {count_text(errors)}"
    return f"{count_text(found.errors_removed)} of {count_text(errors)} errors removed"


def _one_pair(found: Difference) -> str:
    """What can be said of two networks alone. Another seed makes two others."""
    one = found.one_seed
    assert one is not None
    differ = one.mcnemar.p_value < 1 - CONFIDENCE
    what = "these two networks differ" if differ else "these two networks cannot be told apart"
    return (
        f"{what} on such images ({p_text(one.mcnemar)}, {100 * CONFIDENCE:.0f} % interval "
        f"{difference_bounds(found)}), which says nothing yet of the method: `--seeds 5` would"
    )


def _guess(found: Difference) -> str:
    power = f"{100 * POWER:.0f} % power"
    if found.seeds_needed is None:
        return f"a gain as small beside its spread would take more than {MOST_SEEDS} seeds to show ({power})"
    return (
        f"if mean and spread stay as they are, a rough guess from {found.gain.n}, "
        f"it would take about {found.seeds_needed} seeds to show ({power})"
    )


def gain_text(interval: Interval) -> str:
    """Returns the mean with its sign, ``"+0.18"``; zero has none."""
    decimals = _decimals(interval)
    return f"{interval.mean:+.{decimals}f}" if round(interval.mean, decimals) else "0"


def bounds_text(interval: Interval) -> str:
    """Returns ``"0.10 to 0.26"``, or ``""`` where there is no interval of any width."""
    if interval.low is None or interval.high is None or interval.sd == 0:
        return ""
    decimals = _decimals(interval)
    # Adding zero turns a rounded "-0.00" into "0.00".
    return " to ".join(
        f"{round(bound, decimals) + 0.0:.{decimals}f}" for bound in (interval.low, interval.high)
    )


def interval_text(interval: Interval) -> str:
    """Returns ``"95 % interval 0.10 to 0.26 over 5 seeds"``; without one, says why."""
    if interval.n == 1:
        return "one seed"
    if interval.sd == 0:
        return f"the same in each of {interval.n} seeds"
    return f"{100 * CONFIDENCE:.0f} % interval {bounds_text(interval)} over {interval.n} seeds"


def _decimals(interval: Interval) -> int:
    """Two, or up to four where a number that is not zero would be shown as zero."""
    shown = [number for number in (interval.mean, interval.low, interval.high) if round(number or 0, 4)]
    return next((decimals for decimals in (2, 3) if all(round(number or 0, decimals) for number in shown)), 4)


def p_text(test: McNemar) -> str:
    """Returns ``"McNemar's exact p = 0.031"``."""
    p_value = f"= {test.p_value:.2g}" if test.p_value >= 0.0001 else "< 0.0001"
    return f"McNemar's exact p {p_value}"
