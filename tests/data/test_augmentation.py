"""Random shifts: every image moves by whole pixels, nothing else happens to it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain.data.augmentation import Shift, augmentation
from kdtrain.data.datasets import Dataset
from kdtrain.data.loader import Loader

Floats = npt.NDArray[np.float32]


def _moved(image: Floats, down: int, right: int, background: float) -> Floats:
    """Returns an image (H, W) moved pixel by pixel, in plain Python."""
    height, width = image.shape
    result = np.full_like(image, background)
    for row in range(height):
        for column in range(width):
            if 0 <= row - down < height and 0 <= column - right < width:
                result[row, column] = image[row - down, column - right]
    return result


@settings(max_examples=30)
@given(
    pixels=st.integers(1, 9),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 8), st.integers(1, 8)),
    seed=st.integers(0, 1000),
)
def test_each_image_is_moved_as_a_whole_and_the_rest_is_background(
    pixels: int, shape: tuple[int, int, int, int], seed: int
) -> None:
    images = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    background = (-1.5, 0.25, 7.0)[: shape[1]]
    shifted = Shift(pixels, background)(images, np.random.default_rng(seed))
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
    _, _, rows, columns = np.nonzero(Shift(2, (0.0,))(dot, np.random.default_rng(0)))
    counts = np.histogram2d(rows, columns, bins=(np.arange(10), np.arange(10)))[0]
    assert counts[2:7, 2:7].sum() == 10_000
    assert counts[2:7, 2:7].min() > 300  # 400 expected, 5 sigma
    assert counts[2:7, 2:7].max() < 500


def test_the_data_stay_as_they_are(mnist: Dataset) -> None:
    images = mnist.normalization.apply(mnist.train.images[:64])
    before = images.copy()
    Shift(2, mnist.normalization.background)(images, np.random.default_rng(0))
    np.testing.assert_array_equal(images, before)


def test_the_background_is_what_a_black_pixel_becomes(mnist: Dataset) -> None:
    black = mnist.normalization.apply(np.zeros((1, 1, 28, 28), np.uint8))
    np.testing.assert_allclose(black, mnist.normalization.background[0], rtol=1e-6)


@pytest.mark.parametrize(("text", "pixels"), [("shift=1", 1), ("shift=9", 9)])
def test_the_setting_is_understood(text: str, pixels: int) -> None:
    assert augmentation(text, (0.0,)) == Shift(pixels, (0.0,))
    assert augmentation("none", (0.0,)) is None


def test_a_loader_changes_its_images_anew_in_each_epoch_by_seed(mnist: Dataset) -> None:
    images = mnist.normalization.apply(mnist.train.images[:64])

    def epoch(number: int, seed: int = 0) -> Floats:
        augment = Shift(2, mnist.normalization.background)
        loader = Loader(images, mnist.train.labels[:64], 64, num_classes=10, seed=seed, augment=augment)
        (batch,) = loader.epoch(number)
        order = np.argsort(batch.indices.numpy())
        inputs: Floats = batch.inputs.numpy()[order]
        return inputs

    np.testing.assert_array_equal(epoch(1), epoch(1))
    for other in (epoch(2), epoch(1, seed=1), images):
        assert not np.array_equal(epoch(1), other)


def test_evaluation_sees_the_images_unchanged(mnist: Dataset) -> None:
    images = mnist.normalization.apply(mnist.train.images[:64])
    augment = Shift(2, mnist.normalization.background)
    loader = Loader(images, mnist.train.labels[:64], 64, num_classes=10, seed=0, augment=augment)
    (batch,) = loader.in_order(64).epoch(1)
    np.testing.assert_array_equal(batch.inputs.numpy(), images)
