"""Augmentations change images as their names say, by seed and epoch; mixup also mixes labels."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain.data.augmentation import Colour, Crop, Erase, Flip, Rotate, Shift, Zoom, augmentation
from kdtrain.data.dataset import Dataset, Normalization
from kdtrain.data.draws import Draws

Floats = npt.NDArray[np.float32]

PIXELS, BRIGHT = Normalization((0.0,), (1.0,)), Normalization((-0.5,), (1.0,))


@pytest.fixture(scope="module")
def images(mnist: Dataset) -> Floats:
    return mnist.normalization.apply(mnist.train.images[:256])


def _draws(count: int, seed: int = 0) -> Draws:
    return Draws(seed, np.arange(count), np.ones(count, np.int64))


def _moved(image: Floats, down: int, right: int, background: float) -> Floats:
    """Returns an image (H, W) moved pixel by pixel, in plain Python."""
    height, width = image.shape
    result = np.full_like(image, background)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[row, column] = image[row - down, column - right]
    return result


SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 8), st.integers(1, 8))
SEEDS = st.integers(0, 1000)


@settings(max_examples=30)
@given(pixels=st.integers(1, 9), shape=SHAPES, seed=SEEDS)
def test_each_image_is_moved_as_a_whole_and_the_rest_is_background(
    pixels: int, shape: tuple[int, int, int, int], seed: int
) -> None:
    images = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    background = (-1.5, 0.25, 7.0)[: shape[1]]
    shifted = Shift(pixels, background)(images, _draws(len(images), seed))
    assert shifted.shape == images.shape
    assert shifted.dtype == np.float32
    for before, after in zip(images, shifted, strict=True):
        ways = [(down, right) for down in range(-pixels, pixels + 1) for right in range(-pixels, pixels + 1)]
        assert any(
            all(
                np.array_equal(after[channel], _moved(before[channel], *way, background[channel]))
                for channel in range(shape[1])
            )
            for way in ways
        )


def test_all_distances_are_equally_likely_and_independent() -> None:
    dot = np.zeros((10_000, 1, 9, 9), np.float32)
    dot[:, :, 4, 4] = 1
    _, _, rows, columns = np.nonzero(Shift(2, (0.0,))(dot, _draws(len(dot))))
    counts = np.histogram2d(rows, columns, bins=(np.arange(10), np.arange(10)))[0]
    assert counts[2:7, 2:7].sum() == 10_000
    assert counts[2:7, 2:7].min() > 300  # 400 expected, 5 sigma
    assert counts[2:7, 2:7].max() < 500


def test_the_background_is_what_a_black_pixel_becomes(mnist: Dataset) -> None:
    black = mnist.normalization.apply(np.zeros((1, 1, 28, 28), np.uint8))
    np.testing.assert_allclose(black, mnist.normalization.background[0], rtol=1e-6)


def test_the_setting_is_understood() -> None:
    assert augmentation("shift=1", PIXELS) == Shift(1, (0.0,))
    assert augmentation("shift=9", PIXELS) == Shift(9, (0.0,))
    assert augmentation("none", PIXELS) is None
    assert augmentation("rotate=15", BRIGHT) == Rotate(15, (0.5,))
    assert augmentation("crop=4", BRIGHT) == Crop(4)
    assert augmentation("flip", BRIGHT) == Flip()
    assert augmentation("flip", BRIGHT, fixed=True) == Flip(fixed=True)
    assert augmentation("scale=0.25..0.5", BRIGHT) == Zoom(0.25, 0.5)
    assert augmentation("colour=0.3", BRIGHT) == Colour(0.3, BRIGHT)
    assert augmentation("erase=0.25", BRIGHT) == Erase(0.25)
    assert augmentation("mixup", PIXELS) is None
    assert augmentation("mixup=0.2,shift=2", BRIGHT) == Shift(2, (0.5,))


def test_augmentations_are_applied_in_the_order_of_the_setting(images: Floats) -> None:
    steps = (Shift(2, (-0.5,)), Rotate(15, (-0.5,)), Flip(), Crop(4))
    changed = augmentation("shift=2,rotate=15,flip,crop=4", Normalization((0.5,), (1.0,)))
    assert changed is not None
    draws, expected = _draws(len(images), 3), images
    for step in steps:
        expected = step(expected, draws)
    np.testing.assert_array_equal(changed(images, draws), expected)


@pytest.mark.parametrize(
    "text",
    [
        *("shift=2", "crop=3", "flip", "rotate=20", "scale=0.5..1", "colour=0.4", "erase=0.5"),
        "shift=1,flip,crop=2,rotate=5,scale=0.2..0.8,colour=1,erase=1",
    ],
)
def test_every_kind_keeps_shape_type_and_the_data(text: str, mnist: Dataset) -> None:
    images = np.repeat(mnist.normalization.apply(mnist.train.images[:16]), 3, 1)
    before = images.copy()
    changed = augmentation(text, Normalization((0.0, -1.0, -2.0), (1.0, 1.0, 1.0)))
    assert changed is not None
    first, again, other = (changed(images, _draws(len(images), seed)) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == (images.shape, images.dtype)
    assert first.flags.c_contiguous
    assert not np.shares_memory(first, images)
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    np.testing.assert_array_equal(images, before)


def test_a_flip_mirrors_every_other_variant(mnist: Dataset) -> None:
    images = mnist.normalization.apply(mnist.train.images[:1000])
    mirrored = []
    for variant in range(1, 5):
        draws = dataclasses.replace(_draws(len(images)), variants=np.full(len(images), variant))
        flipped = Flip()(images, draws)
        mirrored.append((flipped == images[..., ::-1]).all((1, 2, 3)))
        assert (mirrored[-1] | (flipped == images).all((1, 2, 3))).all()
        assert 400 < mirrored[-1].sum() < 600
        np.testing.assert_array_equal((Flip(fixed=True)(images, draws) != images).any(), variant % 2 == 1)
    for before, after in itertools.pairwise(mirrored):
        np.testing.assert_array_equal(before, ~after)


@given(low=st.floats(0.05, 1.0), shape=st.tuples(st.integers(1, 20), st.integers(1, 20)), seed=SEEDS)
def test_a_zoom_shows_a_part_of_the_area_at_the_same_proportions(
    low: float, shape: tuple[int, int], seed: int
) -> None:
    """The source of each pixel is read off an image whose values are rows and columns."""
    height, width = shape
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    images = np.stack([rows, columns]).astype(np.float32)[None].repeat(20, axis=0)
    zoomed = Zoom(low, 1.0)(images, _draws(20, seed))
    for down, right in zoomed:
        assert zoomed.min() >= 0
        assert down.max() <= height - 1 + 1e-5
        assert right.max() <= width - 1 + 1e-5
        np.testing.assert_allclose(down, down[:, :1].repeat(width, axis=1), atol=1e-4)
        np.testing.assert_allclose(right, right[:1].repeat(height, axis=0), atol=1e-4)
    if height > 8 and width > 8:  # away from the edge, steps between pixels are the side of the part
        steps = np.diff(zoomed[:, 0, :, 0], axis=1)[:, height // 2 - 1]
        across = np.diff(zoomed[:, 1, 0], axis=1)[:, width // 2 - 1]
        np.testing.assert_allclose(steps, across, atol=1e-4)
        assert (steps >= np.sqrt(low) - 1e-4).all()
        assert (steps <= 1 + 1e-4).all()


def test_colours_change_as_the_formulas_say() -> None:
    """Brightness, contrast about the mean luma, saturation, and hue in YIQ, one image after another."""
    random = np.random.default_rng(0)
    of_data = Normalization((0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
    pixels = random.uniform(0.3, 0.6, (50, 3, 6, 5))
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (of_data.mean, of_data.std))
    draws = _draws(50, 4)
    changed = Colour(0.3, of_data)(((pixels - mean) / std).astype(np.float32), draws) * std + mean
    drawn = {
        name: 0.3 * (2 * draws.uniform(name) - 1) for name in ("brightness", "contrast", "saturation", "hue")
    }
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])
    for index in range(50):
        bright, contrast, saturation = (1 + drawn[name][index] for name in list(drawn)[:3])
        image = pixels[index] * bright
        grey = np.tensordot(to_yiq[0], image, 1).mean()
        image = grey + contrast * (image - grey)
        y, i, q = np.tensordot(to_yiq, image, 1)
        turned = saturation * (i + 1j * q) * np.exp(1j * np.pi / 2 * drawn["hue"][index])
        image = np.tensordot(np.linalg.inv(to_yiq), np.stack([y, turned.real, turned.imag]), 1)
        np.testing.assert_allclose(changed[index], image.clip(0, 1), atol=1e-5)


def test_grey_images_stay_between_black_and_white() -> None:
    pixels = np.random.default_rng(0).uniform(0, 1, (40, 1, 7, 7)).astype(np.float32)
    changed = Colour(1.0, PIXELS)(pixels, _draws(40))
    assert 0 <= changed.min() < 0.1
    assert 0.9 < changed.max() <= 1
    draws = _draws(40)
    first = Colour(0.2, PIXELS)(np.full((40, 1, 2, 2), 0.5, np.float32), draws)
    expected = 0.5 * (1 + 0.2 * (2 * draws.uniform("brightness") - 1))
    np.testing.assert_allclose(first[:, 0, 0, 0], expected, atol=1e-6)


def test_rectangles_of_a_share_of_images_become_the_mean() -> None:
    images = np.ones((4000, 2, 40, 40), np.float32)
    erased = Erase(0.25)(images, _draws(4000)) == 0
    np.testing.assert_array_equal(erased[:, 0], erased[:, 1])
    areas = erased[:, 0].mean(axis=(1, 2))
    assert 0.22 < (areas > 0).mean() < 0.28
    assert areas.max() <= 0.36
    for image in erased[areas > 0, 0][:100]:
        rows, columns = image.any(axis=1), image.any(axis=0)
        np.testing.assert_array_equal(image, rows[:, None] & columns)


@given(pixels=st.integers(1, 9), shape=SHAPES, seed=SEEDS)
def test_a_crop_is_a_window_of_the_image_mirrored_at_its_edges(
    pixels: int, shape: tuple[int, int, int, int], seed: int
) -> None:
    images = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    cropped = Crop(pixels)(images, _draws(len(images), seed))

    def mirrored(position: int, length: int) -> int:
        position = abs(position) % (2 * length - 2 or 1)
        return min(position, 2 * length - 2 - position) if length > 1 else 0

    height, width = shape[2:]
    way = range(-pixels, pixels + 1)
    for before, after in zip(images, cropped, strict=True):
        windows = (
            before[:, [mirrored(row + down, height) for row in range(height)]][
                :, :, [mirrored(column + right, width) for column in range(width)]
            ]
            for down in way
            for right in way
        )
        assert any(np.array_equal(after, window) for window in windows)


def _turned(image: Floats, angle: float, background: float) -> Floats:
    """An image (H, W) turned by ``angle`` (radians), pixel by pixel, in float64."""
    height, width = image.shape
    result = np.empty((height, width))
    for row in range(height):
        for column in range(width):
            y, x = row - (height - 1) / 2, column - (width - 1) / 2
            down = math.cos(angle) * y - math.sin(angle) * x + (height - 1) / 2
            right = math.sin(angle) * y + math.cos(angle) * x + (width - 1) / 2
            value = 0.0
            for near_row in (math.floor(down), math.floor(down) + 1):
                for near_column in (math.floor(right), math.floor(right) + 1):
                    weight = (1 - abs(down - near_row)) * (1 - abs(right - near_column))
                    inside = 0 <= near_row < height and 0 <= near_column < width
                    value += weight * (image[near_row, near_column] if inside else background)
            result[row, column] = value
    return result.astype(np.float32)


@settings(max_examples=30)
@given(degrees=st.integers(1, 180), shape=SHAPES, seed=SEEDS)
def test_a_rotation_agrees_with_formula(degrees: int, shape: tuple[int, int, int, int], seed: int) -> None:
    images = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    background = (-1.5, 0.25, 7.0)[: shape[1]]
    turned = Rotate(degrees, background)(images, _draws(len(images), seed))
    angles = np.radians(degrees * (2 * _draws(shape[0], seed).uniform("rotate") - 1))
    for before, after, angle in zip(images, turned, angles, strict=True):
        for channel in range(shape[1]):
            expected = _turned(before[channel], angle, background[channel])
            np.testing.assert_allclose(after[channel], expected, atol=2e-5)
