"""The sentences of a comparison: each form of the verdict, what it rests on, and contradicting images."""

from __future__ import annotations

import os
import re

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from kdtrain.report.verdict import (
    contradicts_verdict,
    disagreement,
    evidence,
    gap_sentence,
    headline,
    verdict,
)
from kdtrain.store.conditions import Conditions, Transfer
from kdtrain.store.record import ModelResult
from tests.report.comparisons import HELPED, IMAGES, compare, result, three

ALL_LABELLED = Conditions(training_images=55_000)
FEW = "With fewer labels there is more: --labels 500."


def of_size(results: list[ModelResult], student: int, teacher: int = 1_199_882) -> list[ModelResult]:
    return [replace(row, parameters=teacher if row.model == "teacher" else student) for row in results]


def lasting(results: list[ModelResult], seconds: float) -> list[ModelResult]:
    return [replace(row, seconds=seconds) for row in results]


def test_a_gain_is_errors_removed_with_its_interval_and_the_size_of_the_network() -> None:
    results = three([130], [246, 244, 242, 247, 241], [368, 366, 367, 363, 366])
    comparison = compare(results)
    assert verdict(comparison) == (
        "Distillation removed 122 of the student's 366 errors (96.3 → 97.6 %; the teacher has 98.7 %). "
        "Five repetitions, 95 % interval: +1.2 to +1.3 points. The network is 11 times smaller than its "
        "teacher."
    )
    assert headline(comparison) == verdict(comparison).partition(" Five")[0]
    small = verdict(compare(HELPED))
    assert "(98.29 → 98.47 %; the teacher has 99.01 %)" in small
    assert "95 % interval: +0.15 to +0.22 points." in small


def test_a_loss_is_errors_added() -> None:
    text = verdict(compare(three([90], [171, 166, 172], [152, 149, 158])))
    assert text.startswith(
        "Distillation added 17 errors to the student's 153 (98.47 → 98.30 %; the teacher has 99.10 %). "
        "Three repetitions, 95 % interval: -0.2"
    )


def test_an_end_of_the_interval_is_not_rounded_to_zero() -> None:
    comparison = compare(three([90], [100, 100, 100], [161, 200, 239]))
    assert comparison.distillation.gain.low == pytest.approx(0.031, abs=0.001)
    assert "interval: +0.03 to +1.97 points" in verdict(comparison)


@pytest.mark.parametrize(
    ("student", "sentence"),
    [
        (600_000, "The network is 2 times smaller than its teacher."),
        (2_760_000, "The network is 2.3 times larger than its teacher."),
        (810_000, None),
        (0, None),
    ],
)
def test_sizes_are_named_where_they_differ_and_are_known(student: int, sentence: str | None) -> None:
    text = verdict(compare(of_size(HELPED, student)))
    assert text.endswith(f" points. {sentence}" if sentence else " points.")
    assert verdict(compare(of_size(HELPED, 100, teacher=0))).endswith(" points."), "a table of logits"


def test_little_to_copy_from_a_teacher_that_is_little_ahead() -> None:
    results = three([75], [90, 94], [100, 96])
    found = "No difference found: 92 and 98 errors of 10,000."
    little = "The teacher is only 0.2 points ahead of the plain student, so there is little to copy."
    assert verdict(compare(results, conditions=ALL_LABELLED)) == f"{found} {little} {FEW}"
    transfer = Transfer("photos", 400, 0.5, ("student_kd",))
    for conditions in (
        Conditions(training_images=0),
        Conditions(training_images=4000),
        replace(ALL_LABELLED, transfer=transfer),
    ):
        assert verdict(compare(results, conditions=conditions)) == f"{found} {little}"


def test_nothing_to_copy_from_a_teacher_that_is_behind() -> None:
    behind = compare(three([138], [90, 94], [100, 96]), conditions=ALL_LABELLED)
    level = compare(three([98], [90, 94], [100, 96]), conditions=ALL_LABELLED)
    assert verdict(behind).endswith(
        ". The teacher is 0.4 points behind the plain student, so there is nothing to copy."
    )
    assert verdict(level).endswith(
        ". The teacher is level with the plain student, so there is nothing to copy."
    )


def test_an_interval_with_zero_in_it_claims_nothing() -> None:
    comparison = compare(three([20, 20], [150, 170], [171, 172]), conditions=ALL_LABELLED)
    assert comparison.distillation.outcome == "undecided"
    assert verdict(comparison) == (
        "No difference found: 160 and 172 errors of 10,000. The 95 % interval, -1.09 to +1.32 points, "
        "includes zero. It would probably take about 13 repetitions to show a difference of this size "
        "(--seeds 13)."
    )
    assert evidence(comparison).endswith(
        "which includes zero. If mean and spread stay as they are, a rough guess from 2, it would take "
        "about 13 seeds to show (80 % power)."
    )
    assert "helped" not in gap_sentence(comparison)


def test_a_gain_that_is_small_beside_its_spread_gets_no_number_of_seeds() -> None:
    comparison = compare(three([10, 10, 10], [150, 150, 150], [100, 150, 201]))
    assert comparison.distillation.seeds_needed is None
    assert verdict(comparison).endswith(
        " It would probably take more than 1,000 repetitions to show a difference of this size."
    )
    assert evidence(comparison).endswith("would take more than 1000 seeds to show (80 % power).")


@pytest.mark.parametrize(
    ("distilled", "found"),
    [
        (
            [171, 172],
            "No difference found: 172 and 172 errors of 10,000. Two repetitions, the same in each: ",
        ),
        ([161, 162], "Two repetitions: 10 of 172 errors removed in each. Without any spread "),
        ([181, 182], "Two repetitions: 10 errors added to the student's 172 in each. Without any spread "),
    ],
)
def test_gains_without_spread_claim_nothing(distilled: list[int], found: str) -> None:
    comparison = compare(three([20, 20], distilled, [171, 172]))
    assert comparison.distillation.outcome == "undecided"
    assert verdict(comparison) == f"{found}there is no interval to judge by."
    assert "the same in each of 2 seeds" in evidence(comparison)


@pytest.mark.parametrize(
    ("distilled", "change"),
    [
        (368, "379 of 747 errors removed"),
        (747, "none of 747 errors removed"),
        (764, "17 errors added to the student's 747"),
    ],
)
def test_one_training_of_each_asks_for_chance(distilled: int, change: str) -> None:
    text = verdict(compare(lasting(three([300], [distilled], [747]), 0)))
    assert text == f"One training of each: {change}. How much of that is chance? --seeds 5."


@pytest.mark.parametrize(
    ("seconds", "time"),
    [
        *((0.2, "10 seconds"), (8.6, "40 seconds"), (12, "1 minute")),
        *((25, "2 minutes"), (710, "1 hour"), (1500, "2 hours")),
    ],
)
def test_five_pairs_take_as_long_as_these_two_students(
    seconds: float, time: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    results = lasting(three([300], [368], [747]), seconds)
    assert verdict(compare(results)).endswith(f" --seeds 5 ({time}).")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    assert verdict(compare(lasting(results, seconds / 2))).endswith(f" --seeds 5 ({time}).")


@pytest.mark.parametrize(
    ("hard", "sentence"),
    [
        ([250, 248, 247, 249, 246], "remove 118: its probabilities add 4 (interval 2.5 to 5.5)."),
        ([240, 242, 238, 239, 246], "remove 125: its probabilities lose 3 (interval -3.2 to 9.2)."),
        ([366, 366, 367, 364, 367], "remove none: its probabilities add 122 (interval 117 to 127)."),
        ([376, 376, 377, 374, 377], "add 10 errors: its probabilities remove 132 (interval 127 to 137)."),
    ],
)
def test_hard_labels_have_a_sentence_of_their_own(hard: list[int], sentence: str) -> None:
    results = three([130], [246, 244, 242, 247, 241], [368, 366, 367, 363, 366])
    with_hard = results + [result("student_hard", seed, errors) for seed, errors in enumerate(hard)]
    text = verdict(compare(with_hard))
    assert text.startswith(verdict(compare(results)))
    assert text.endswith(f" The teacher's hard labels alone {sentence}")
    single = [row for row in with_hard if row.seed == 0]
    assert "(interval" not in verdict(compare(single)), "one training has no interval over seeds"


errors = st.integers(1, 3000)


@given(st.integers(0, 3000), st.lists(st.tuples(errors, errors), min_size=1, max_size=12))
def test_numbers_in_the_first_sentences_are_those_of_the_comparison(
    teacher: int, pairs: list[tuple[int, int]]
) -> None:
    comparison = compare(three([teacher], [pair[0] for pair in pairs], [pair[1] for pair in pairs], epochs=1))
    text, difference = verdict(comparison), comparison.distillation
    numbers = [float(number.replace(",", "")) for number in re.findall(r"[+-]?\d[\d,]*(?:\.\d+)?", text)]
    plain, distilled = (comparison.summaries[model].errors.mean for model in ("student", "student_kd"))
    assume(difference.errors_removed != 0)
    if text.startswith("No difference found"):
        expected = [distilled, plain, IMAGES]
    else:
        expected = [abs(difference.errors_removed), plain]
        assert ("removed" in text) == (difference.errors_removed > 0)
        assert ("added" in text) == (difference.errors_removed < 0)
    for number, exact in zip(numbers, expected, strict=False):
        assert number == pytest.approx(exact, abs=0.5001 if exact >= 10 else 0.0501)
    if difference.outcome != "undecided":
        assert text.startswith("Distillation ")
        [ends] = re.findall(r"interval: (\S+) to (\S+) points", text)
        low, high = map(float, ends)
        assert low == pytest.approx(difference.gain.low, abs=0.0501)
        assert high == pytest.approx(difference.gain.high, abs=0.0501)
        assert low * high > 0, "a bound is not rounded to zero"
        accuracies = [float(part) for part in re.findall(r"(\d+\.\d+)(?: →| %;| %\))", text)]
        means = [comparison.summaries[model].accuracy.mean for model in ("student", "student_kd", "teacher")]
        assert accuracies == pytest.approx(means, abs=0.0501)
        assert accuracies[0] != accuracies[1]
    else:
        assert "Distillation" not in text


def held_out(results: list[ModelResult], distilled: float, plain: float) -> list[ModelResult]:
    """Returns results with these accuracies on the held-out images."""
    accuracies = {"teacher": 0.99, "student_kd": distilled, "student": plain}
    return [replace(run, held_out_accuracy=accuracies[run.model]) for run in results]


def test_a_sentence_says_where_held_out_and_test_images_disagree() -> None:
    results = held_out(three([80], [90], [100]), 0.95, 0.97)
    sentence = disagreement(compare(results))
    assert sentence is not None
    assert "on held-out images is student (97.00 %; on test images 99.00 %)" in sentence
    assert "best on test images student_kd (95.00 %; on test images 99.10 %)" in sentence
    assert "-2.00 points there, +0.10 on test images" in sentence
    assert compare(results).disagreement == sentence
    assert disagreement(compare(held_out(results, 0.95, 0.94))) is None
    assert disagreement(compare(held_out(results, 0.95, 0.95))) is None


def test_a_contradiction_by_held_out_images_matters_where_the_verdict_is_decided() -> None:
    def contradicted(results: list[ModelResult], distilled: float) -> bool:
        comparison = compare(held_out(results, distilled, 0.95))
        assert comparison.disagreement_changes_verdict == contradicts_verdict(comparison)
        assert (disagreement(comparison) is not None) == (distilled < 0.95)
        return contradicts_verdict(comparison)

    assert contradicted(HELPED, 0.94)
    assert not contradicted(HELPED, 0.96)
    assert not contradicted(three([80], [90], [100]), 0.94), "one training of each decides nothing"
    assert not contradicted(three([80], [90, 101], [100, 102]), 0.94)
