"""Sentences about a comparison that claim no more than the figures support."""

from __future__ import annotations

import math
from collections.abc import Mapping

from kdtrain.metrics.names import CONFIDENCE, Interval
from kdtrain.metrics.statistics import MOST_SEEDS, POWER, t_interval
from kdtrain.runtime.processes import available_cores
from kdtrain.store.record import Comparison, Difference, Model

_NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_SEEDS = 5  # what the verdict on one training of each suggests
_LITTLE_LEAD = 1.0  # points of the teacher, below which there is little to copy
_OTHER_SIZE = 1.5  # times as many parameters, from which a verdict names the sizes


def verdict(comparison: Comparison) -> str:
    """Returns the plain verdict: what distillation did, how certain that is, and what else to try."""
    return " ".join(_verdict(comparison))


def headline(comparison: Comparison) -> str:
    """Returns the first sentence of the verdict."""
    return _verdict(comparison)[0]


def _verdict(comparison: Comparison) -> list[str]:
    difference = comparison.distillation
    if difference.gain.n == 1:
        sentences = _one_training(comparison)
    elif difference.outcome != "undecided":
        sentences = _effect(comparison)
    elif difference.gain.sd == 0 and difference.errors_removed:
        repetitions, change = _repetitions(difference.gain.n), _change(comparison)
        sentences = [
            f"{repetitions}: {change} in each.",
            "Without any spread there is no interval to judge by.",
        ]
    else:
        sentences = _no_difference(comparison)
    return sentences + _hard_labels(comparison)


def _effect(comparison: Comparison) -> list[str]:
    difference, gain = comparison.distillation, comparison.distillation.gain
    removed, errors = difference.errors_removed, comparison.summaries["student"].errors.mean
    change = (
        f"removed {_plain(removed)} of the student's {_plain(errors)} errors"
        if removed > 0
        else f"added {_plain(-removed)} errors to the student's {_plain(errors)}"
    )
    digits = _plain_decimals(gain)
    plain, distilled, teacher = (
        f"{comparison.summaries[model].accuracy.mean:.{digits}f}"
        for model in ("student", "student_kd", "teacher")
    )
    return [
        f"Distillation {change} ({plain} → {distilled} %; the teacher has {teacher} %).",
        f"{_repetitions(gain.n)}, {100 * CONFIDENCE:.0f} % interval: {_bounds(gain, digits)} points.",
        *_size(comparison),
    ]


def _one_training(comparison: Comparison) -> list[str]:
    summaries = [summary for model, summary in comparison.summaries.items() if model != "teacher"]
    at_once = min(2, len(available_cores()))  # students that train side by side
    seconds = _SEEDS * sum(summary.seconds.mean for summary in summaries) / at_once
    time = f" ({_duration(seconds)})" if seconds else ""
    return [
        f"One training of each: {_change(comparison)}.",
        f"How much of that is chance? --seeds {_SEEDS}{time}.",
    ]


def _change(comparison: Comparison) -> str:
    removed, errors = comparison.distillation.errors_removed, comparison.summaries["student"].errors.mean
    if removed < 0:
        return f"{_plain(-removed)} errors added to the student's {_plain(errors)}"
    return f"{_plain(removed) if removed else 'none'} of {_plain(errors)} errors removed"


def _no_difference(comparison: Comparison) -> list[str]:
    difference, models = comparison.distillation, comparison.summaries
    distilled, plain = models["student_kd"].errors.mean, models["student"].errors.mean
    found = (
        f"No difference found: {_plain(distilled)} and {_plain(plain)} errors of {comparison.test_images:,}."
    )
    lead = models["teacher"].accuracy.mean - models["student"].accuracy.mean
    if lead < _LITTLE_LEAD:
        return [found, *_little_to_copy(comparison, lead)]
    gain = difference.gain
    if gain.sd == 0:
        return [found, f"{_repetitions(gain.n)}, the same in each: there is no interval to judge by."]
    least = (
        f"more than {MOST_SEEDS:,}" if difference.seeds_needed is None else f"about {difference.seeds_needed}"
    )
    flag = "" if difference.seeds_needed is None else f" (--seeds {difference.seeds_needed})"
    bounds = _bounds(gain, _plain_decimals(gain))
    return [
        found,
        f"The {100 * CONFIDENCE:.0f} % interval, {bounds} points, includes zero.",
        f"It would probably take {least} repetitions to show a difference of this size{flag}.",
    ]


def _little_to_copy(comparison: Comparison, lead: float) -> list[str]:
    """Returns why there is little or nothing to copy from a teacher that is so many points ahead."""
    digits = 1 if abs(lead) >= 0.05 else 2
    points = f"{abs(lead):.{digits}f} points"
    if round(lead, digits) == 0:
        return ["The teacher is level with the plain student, so there is nothing to copy."]
    if lead < 0:
        return [f"The teacher is {points} behind the plain student, so there is nothing to copy."]
    copy = f"The teacher is only {points} ahead of the plain student, so there is little to copy."
    more = "With fewer labels there is more: --labels 500."
    return [copy, more] if comparison.conditions.may_take_fewer_labels else [copy]


def _hard_labels(comparison: Comparison) -> list[str]:
    """Returns what the teacher's probabilities add to its hard labels, if student_hard took part."""
    pairs = {(pair.model, pair.baseline): pair for pair in comparison.differences}
    if ("student_hard", "student") not in pairs:
        return []
    alone = pairs["student_hard", "student"].errors_removed
    added, gain = pairs["student_kd", "student_hard"].errors_removed, pairs["student_kd", "student_hard"].gain
    sign, interval = (1 if added >= 0 else -1), ""
    if gain.low is not None and gain.high is not None and gain.sd:
        bounds = sorted(sign * bound * comparison.test_images / 100 for bound in (gain.low, gain.high))
        interval = f" (interval {' to '.join(map(_plain, bounds))})"
    if alone >= 0:
        effect, verb = f"remove {_plain(alone) if alone else 'none'}", "add" if added >= 0 else "lose"
    else:
        effect, verb = f"add {_plain(-alone)} errors", "remove" if added >= 0 else "add"
    amount = _plain(abs(added)) if added else "nothing"
    return [f"The teacher's hard labels alone {effect}: its probabilities {verb} {amount}{interval}."]


def _size(comparison: Comparison) -> list[str]:
    teacher, student = (comparison.summaries[model].parameters for model in ("teacher", "student_kd"))
    if not teacher or not student:  # unknown, as those of a table of logits
        return []
    times = max(teacher, student) / min(teacher, student)
    if times < _OTHER_SIZE:
        return []
    comparative = "smaller" if student < teacher else "larger"
    return [f"The network is {float(f'{times:.2g}'):,g} times {comparative} than its teacher."]


def _repetitions(number: int) -> str:
    return f"{_NUMBERS[number].capitalize() if number < len(_NUMBERS) else number} repetitions"


def _bounds(interval: Interval, digits: int) -> str:
    """Returns ``"+1.1 to +1.3"``."""
    low, high = (round(bound or 0.0, digits) + 0.0 for bound in (interval.low, interval.high))
    return f"{low:+.{digits}f} to {high:+.{digits}f}"


def _plain(errors: float) -> str:
    """Returns a mean number of errors: whole from 10 on, with one decimal below."""
    digits = 0 if abs(errors) >= 10 or float(errors).is_integer() else 1
    return f"{round(errors, digits) + 0.0:,.{digits}f}"


def _plain_decimals(gain: Interval) -> int:
    """Returns the fewest decimals that show the gain, the ends of its interval and their difference."""
    low, high = gain.low or 0.0, gain.high or 0.0
    shown = [number for number in (low, high) if round(number, 4)]
    for digits in (1, 2, 3):
        apart = round(low, digits) != round(high, digits)
        if abs(gain.mean) >= 5 * 10**-digits and apart and all(round(number, digits) for number in shown):
            return digits
    return 4


def _duration(seconds: float) -> str:
    """Returns about how long something takes: ``"40 seconds"``, ``"2 minutes"``, ``"1 hour"``."""
    for unit, length in (("hour", 3600), ("minute", 60)):
        if seconds >= 0.95 * length:
            number = round(seconds / length)
            return f"{number:,} {unit}{'s' * (number != 1)}"
    return f"{max(10, round(seconds, -1)):.0f} seconds"


def evidence(comparison: Comparison) -> str:
    """Returns what the verdict rests on: gain and interval, and for one seed McNemar's test."""
    difference, gain = comparison.distillation, comparison.distillation.gain
    points = f"{gain_text(gain)} points"
    if difference.one_seed is not None:
        p_value = difference.one_seed.p_value
        differ = "differ" if p_value < 1 - CONFIDENCE else "cannot be told apart"
        return (
            f"One seed: {points}, {100 * CONFIDENCE:.0f} % interval {difference_bounds(difference)} over the "
            f"test images. These two networks {differ} on such images "
            f"(McNemar's exact p {p_value_text(p_value)}), which says nothing yet of the method."
        )
    if difference.outcome != "undecided" or not gain.sd:
        return f"Gain: {points}, {interval_text(gain)}."
    return f"Gain: {points}, {interval_text(gain)}, which includes zero. {_guess(difference)}."


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


def _guess(difference: Difference) -> str:
    power = f"{100 * POWER:.0f} % power"
    if difference.seeds_needed is None:
        return f"A gain as small beside its spread would take more than {MOST_SEEDS} seeds to show ({power})"
    return (
        f"If mean and spread stay as they are, a rough guess from {difference.gain.n}, "
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


def p_value_text(p_value: float) -> str:
    """Returns ``"= 0.031"``, or ``"< 0.0001"`` for a smaller one."""
    return f"= {p_value:.2g}" if p_value >= 0.0001 else "< 0.0001"


def disagreement(comparison: Comparison) -> str | None:
    """Returns a sentence if another student is the best on held-out than on test images, else None.

    It also says so where the gain of distillation has the other sign. A held-out figure is the accuracy of
    the best epoch, a mean over the seeds.
    """
    held_out = _held_out(comparison)
    test = {model: comparison.summaries[model].accuracy.mean for model in held_out}
    sentences = []
    if held_out and not (_best(held_out) & _best(test)):
        there, here = min(_best(held_out)), min(_best(test))
        sentences.append(
            f"The best student on held-out images is {there} ({held_out[there]:.2f} %; on test images "
            f"{test[there]:.2f} %), the best on test images {here} ({held_out[here]:.2f} %; on test images "
            f"{test[here]:.2f} %)."
        )
    there_gain, gain = _held_out_gain(held_out), comparison.distillation.gain
    if there_gain * gain.mean < 0:
        sentences.append(
            f"The gain of distillation has another sign on held-out images: "
            f"{gain_text(t_interval([there_gain]))} points there, {gain_text(gain)} on test images."
        )
    return " ".join(["Held-out and test images disagree.", *sentences]) if sentences else None


def contradicts_verdict(comparison: Comparison) -> bool:
    """Returns whether held-out images show the opposite of a verdict that has decided for one side."""
    difference = comparison.distillation
    return (
        difference.outcome != "undecided" and _held_out_gain(_held_out(comparison)) * difference.gain.mean < 0
    )


def _held_out_gain(held_out: Mapping[Model, float]) -> float:
    """Returns the gain on held-out images, points; 0 if it is unknown."""
    known = {"student_kd", "student"} <= held_out.keys()
    return held_out["student_kd"] - held_out["student"] if known else 0.0


def _held_out(comparison: Comparison) -> dict[Model, float]:
    """Returns the held-out accuracy of each student that was trained here, per cent."""
    accuracies = {
        model: [row.held_out_accuracy for row in comparison.models if row.model == model]
        for model in comparison.summaries
        if model != "teacher"
    }
    known = {model: [value for value in values if value is not None] for model, values in accuracies.items()}
    return {
        model: 100 * math.fsum(values) / len(values)
        for model, values in known.items()
        if values and len(values) == len(accuracies[model])
    }


def _best(accuracies: Mapping[Model, float]) -> set[Model]:
    """Returns the models with the highest accuracy; those within a rounding error share it."""
    most = max(accuracies.values())
    return {model for model, accuracy in accuracies.items() if math.isclose(accuracy, most, rel_tol=1e-12)}
