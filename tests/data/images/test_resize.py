"""Images of one network become those of another: size, channels and normalisation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from kdtrain.data.dataset import Normalization
from kdtrain.data.images.resize import InputConversion, InputForm, resize_matrix

GREY = Normalization((0.2,), (0.4,))
COLOUR = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def pixels(seed: int, *shape: int) -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


@given(st.integers(0, 2**32 - 1))
def test_another_normalisation_gives_the_images_that_it_gives_from_pixels(seed: int) -> None:
    images, own = pixels(seed, 3, 1, 5, 6), Normalization((0.7,), (0.1,))
    conversion = InputConversion(InputForm((1, 5, 6), GREY), InputForm((1, 5, 6), own))
    converted = conversion(GREY.apply(images))
    assert converted.dtype == np.float32
    np.testing.assert_allclose(converted, own.apply(images), atol=2e-5)


def test_grey_becomes_three_equal_channels_and_colours_their_luma() -> None:
    grey, colour = pixels(0, 2, 1, 4, 4), pixels(1, 2, 3, 4, 4)
    plain = Normalization((0.0,), (1.0,))
    to_colour = InputConversion(InputForm((1, 4, 4), GREY), InputForm((3, 4, 4), COLOUR))
    expected = COLOUR.apply(np.repeat(grey, 3, axis=1))
    np.testing.assert_allclose(to_colour(GREY.apply(grey)), expected, atol=2e-5)
    to_grey = InputConversion(InputForm((3, 4, 4), COLOUR), InputForm((1, 4, 4), plain))
    luma = (colour / 255 * np.array([0.299, 0.587, 0.114]).reshape(3, 1, 1)).sum(1, keepdims=True)
    np.testing.assert_allclose(to_grey(COLOUR.apply(colour)), luma, atol=2e-6)


@pytest.mark.parametrize("size", [(56, 84), (14, 7), (28, 41)])
def test_sizes_are_changed_as_pillow_does(size: tuple[int, int]) -> None:
    image = pixels(2, 28, 28)
    plain = Normalization((0.0,), (1 / 255,))
    conversion = InputConversion(InputForm((1, 28, 28), plain), InputForm((1, *size), plain))
    resized = conversion(image[None, None].astype(np.float32))[0, 0]
    floats = Image.fromarray(image.astype(np.float32), mode="F")
    expected = np.asarray(floats.resize(size[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resized, expected, atol=0.02)


@given(st.integers(1, 60), st.integers(1, 60))
def test_an_even_image_stays_even(size: int, wanted: int) -> None:
    matrix = resize_matrix(size, wanted)
    assert matrix.shape == (wanted, size)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-5)
    assert (matrix >= 0).all()
