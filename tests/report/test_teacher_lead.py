"""The sentences about a teacher's lead: each case, each threshold, and the way to JSON and back."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kdtrain.report.teacher_lead import (
    Baseline,
    TeacherLead,
    far_apart_sentence,
    lead_from_json,
    lead_sentences,
    lead_to_json,
)

KEPT = Baseline("kept", "student_mlp", 60, 55_000, 0.9784)
QUICK = Baseline("quick", "student_mlp", 3, 10_000, 0.9306)
LEAD = TeacherLead(5000, 0.9914, 0.0031, may_have_seen=False, retrains=True, baseline=KEPT)
REMEDY = "train a teacher for longer (--teacher-epochs) or a larger one (--teacher-arch)."


def lead_over(student: Baseline, points: float) -> list[str]:
    """Returns the sentences after the first, for a teacher that is so many points ahead."""
    return lead_sentences(
        dataclasses.replace(LEAD, accuracy=student.accuracy + points / 100, baseline=student)
    )[1:]


def test_a_clear_lead_over_a_trained_student_is_two_sentences() -> None:
    assert lead_sentences(LEAD) == [
        "Teacher: 99.14 % of 5,000 held-out images, calibration error 0.3 %.",
        "It is 1.3 points ahead of the kept plain student "
        "(student_mlp, 60 epochs on 55,000 images: 97.84 %).",
    ]


def test_little_to_copy_from_a_teacher_that_leads_a_trained_student_by_less_than_a_point() -> None:
    assert len(lead_over(KEPT, 1.01)) == 1
    assert lead_over(KEPT, 0.99)[1] == f"There is little to copy: {REMEDY}"
    assert "It is 0.5 points behind the kept plain student" in lead_over(KEPT, -0.5)[0]
    assert "It is level with the kept plain student" in lead_over(KEPT, 0.04)[0]


def test_a_lead_over_a_quick_student_is_said_to_shrink() -> None:
    assert lead_over(QUICK, 6.08) == [
        "It is 6.1 points ahead of a quick student (student_mlp, 3 epochs on 10,000 images: 93.06 %).",
        "A whole training usually removes 25 to 75 % of such a student's errors, "
        "which leaves a lead of +0.9 to +4.3 points.",
    ]


def test_little_to_copy_where_a_whole_training_leaves_less_than_a_point_at_best() -> None:
    quarter = 25 * (1 - QUICK.accuracy)  # of its errors, in points
    assert "little" not in lead_over(QUICK, quarter + 1.01)[1]
    assert lead_over(QUICK, quarter + 0.99)[1].endswith(f"points: there is little to copy, so {REMEDY}")
    behind = "There is little to copy, and a whole training makes a student better still"
    assert lead_over(QUICK, 0.99)[1] == f"{behind}: {REMEDY}"


def test_without_a_student_only_the_teacher_is_described() -> None:
    alone = dataclasses.replace(LEAD, baseline=None)
    assert lead_sentences(alone) == lead_sentences(LEAD)[:1]
    assert alone.points is None


def test_a_teacher_that_may_have_seen_the_images_is_said_to_have() -> None:
    sentences = lead_sentences(dataclasses.replace(LEAD, may_have_seen=True))
    assert sentences[1].startswith("It may have been trained on some of these images")


def test_a_teacher_that_the_command_does_not_train_again_has_a_command_of_its_own() -> None:
    existing = dataclasses.replace(LEAD, accuracy=KEPT.accuracy, retrains=False)
    assert f"with --mode teacher, {REMEDY}" in lead_sentences(existing)[-1]


@pytest.mark.parametrize("baseline", [None, KEPT, QUICK])
def test_figures_come_back_from_json(baseline: Baseline | None) -> None:
    lead = dataclasses.replace(LEAD, baseline=baseline)
    assert lead_from_json(json.loads(json.dumps(lead_to_json(lead), allow_nan=False))) == lead


def test_accuracies_that_chance_explains_are_not_far_apart() -> None:
    # 0.95 of 1,000 and 1,000 images: a standard error of 0.975 points, so 3 of them are 2.9 points.
    assert far_apart_sentence("teacher", (0.964, 1000), (0.936, 1000)) is None
    assert far_apart_sentence("teacher", (0.965, 1000), (0.935, 1000)) is not None
    # With many images chance explains little; a point or less is no reason to warn all the same.
    assert far_apart_sentence("teacher", (0.9595, 10**6), (0.95, 10**6)) is None
    assert far_apart_sentence("teacher", (0.9605, 10**6), (0.95, 10**6)) is not None


def test_a_test_set_of_another_kind_is_said_to_be_one() -> None:
    assert far_apart_sentence("teacher", (0.981, 5000), (0.861, 10_000)) == (
        "Held-out and test accuracy of the teacher are 12.0 points apart (98.10 % and 86.10 %): the test "
        "images are of another kind; what is best on held-out images need not be best on test images."
    )
    seen = "or it was trained on held-out images"
    assert seen in str(far_apart_sentence("teacher", (0.98, 5000), (0.86, 10_000), may_have_seen=True))
    assert seen not in str(far_apart_sentence("teacher", (0.86, 5000), (0.98, 10_000), may_have_seen=True))


def test_without_held_out_images_nothing_is_far_apart() -> None:
    assert far_apart_sentence("teacher", (0.5, 0), (0.9, 10_000)) is None
    assert far_apart_sentence("teacher", (float("nan"), 5000), (0.9, 10_000)) is None
