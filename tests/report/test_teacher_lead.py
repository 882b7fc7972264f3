"""The sentences about a teacher's lead: each case, each threshold, and the way to JSON and back."""

from __future__ import annotations

import dataclasses
import json

import pytest

from kdtrain.report.teacher_lead import (
    Baseline,
    LeadMember,
    TeacherLead,
    far_apart_sentence,
    lead_from_json,
    lead_sentences,
    lead_to_json,
)

KEPT = Baseline("student_mlp", 60, 55_000, 0.9784)
MEMBERS = (LeadMember("a.onnx", 0.98, (0.5,), (0.25,)), LeadMember("table.npz", 0.97))
LEAD = TeacherLead(5000, 0.9914, 0.0031, may_have_seen=False, baseline=KEPT, members=MEMBERS)


def lead_over_kept(points: float) -> str:
    """Returns the sentence about a teacher that is so many points ahead."""
    [_, sentence] = lead_sentences(dataclasses.replace(LEAD, accuracy=KEPT.accuracy + points / 100))
    return sentence


def test_a_clear_lead_over_a_trained_student_is_two_sentences() -> None:
    assert lead_sentences(LEAD) == [
        "Teacher: 99.14 % of 5,000 held-out images, calibration error 0.3 %.",
        "It is 1.3 points ahead of the kept plain student "
        "(student_mlp, 60 epochs on 55,000 images: 97.84 %).",
    ]


def test_little_to_copy_from_a_teacher_that_leads_a_trained_student_by_less_than_a_point() -> None:
    assert "little" not in lead_over_kept(1.01)
    assert lead_over_kept(0.99).endswith(": there is little to copy.")
    assert "It is 0.5 points behind the kept plain student" in lead_over_kept(-0.5)
    assert "It is level with the kept plain student" in lead_over_kept(0.04)


def test_without_a_student_only_the_teacher_is_described() -> None:
    alone = dataclasses.replace(LEAD, baseline=None)
    assert lead_sentences(alone) == lead_sentences(LEAD)[:1]
    assert alone.points is None


def test_a_teacher_that_may_have_seen_the_images_is_said_to_have() -> None:
    sentences = lead_sentences(dataclasses.replace(LEAD, may_have_seen=True))
    assert sentences[1].startswith("It may have been trained on some of these images")


@pytest.mark.parametrize("baseline", [None, KEPT])
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
