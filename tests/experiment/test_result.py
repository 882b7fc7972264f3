"""The warning about held-out and test accuracies that are far apart."""

from __future__ import annotations

from kdtrain.experiment.result import far_apart_sentence


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
