"""The warning about images that are probably no single digit."""

from __future__ import annotations

import dataclasses

import numpy as np
import numpy.typing as npt
import pytest

from kdtrain.data.dataset import Dataset
from kdtrain.deploy.predict.infer import doubt
from kdtrain.store.card import ModelCard

SURE = np.array([9.0, *[0.0] * 9])
USUAL = (280, 280)


def bars(*places: tuple[slice, slice]) -> npt.NDArray[np.uint8]:
    """Returns an image, (1, 28, 28), with ink in these places."""
    image = np.zeros((1, 28, 28), np.uint8)
    for place in places:
        image[0][place] = 255
    return image


ONE = bars((slice(4, 24), slice(12, 15)))
ELEVEN = bars((slice(4, 24), slice(8, 11)), (slice(4, 24), slice(17, 20)))
WITH_A_SPECK = bars((slice(4, 24), slice(8, 11)), (slice(4, 7), slice(17, 20)))
FIVE_WITH_A_BAR_OF_ITS_OWN = bars((slice(8, 24), slice(10, 14)), (slice(4, 7), slice(11, 20)))
DASH = bars((slice(12, 16), slice(4, 24)))


@pytest.mark.parametrize(
    ("image", "reason"), [(ELEVEN, "two parts side by side"), (DASH, "much wider than high")]
)
def test_ink_that_no_digit_has_is_doubted(card: ModelCard, image: npt.NDArray[np.uint8], reason: str) -> None:
    warning = doubt(card, image, SURE, USUAL)
    assert warning is not None
    assert warning.startswith("Probably no single digit: ")
    assert reason in warning


@pytest.mark.parametrize("image", [ONE, WITH_A_SPECK, FIVE_WITH_A_BAR_OF_ITS_OWN, bars()])
def test_ink_of_a_digit_is_not_doubted(card: ModelCard, image: npt.NDArray[np.uint8]) -> None:
    assert doubt(card, image, SURE, USUAL) is None


def test_an_improbable_class_is_doubted(card: ModelCard) -> None:
    for probability, doubted in ((0.55, True), (0.65, False)):
        logits = np.log(np.array([probability, *[(1 - probability) / 9] * 9], np.float64))
        warning = doubt(card, ONE, logits, USUAL)
        assert (warning is not None) is doubted
    assert doubt(card, ONE, np.zeros(10), USUAL) == (
        "Probably no single digit: the most probable class has only 10.0%."
    )


def test_an_image_of_less_than_half_the_size_is_doubted_by_any_model(card: ModelCard) -> None:
    pets = dataclasses.replace(card, dataset="folder:pets", classes=tuple("abcdefghij"))
    for model in (card, pets):
        assert doubt(model, ONE, SURE, (5, 5)) == (
            "Probably too small: it has only 5 x 5 pixels, the model's images have 28 x 28."
        )
        assert doubt(model, ONE, SURE, (5, 14)) is None


def test_other_models_have_no_rules_for_digits(card: ModelCard) -> None:
    for other in ({"dataset": "folder:pets"}, {"classes": ("coat", *"123456789")}):
        assert doubt(dataclasses.replace(card, **other), ELEVEN, np.zeros(10), USUAL) is None


def test_digits_are_seldom_doubted(card: ModelCard, mnist: Dataset) -> None:
    warnings = [doubt(card, image, SURE, USUAL) for image in mnist.test.images[:1000]]
    assert sum(warning is not None for warning in warnings) <= 5
