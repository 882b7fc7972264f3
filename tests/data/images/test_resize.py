"""Image files of every common format are read upright, in colour, and scaled."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kdtrain.data.images.resize import is_grey, read_image, to_channels
from kdtrain.errors import DataError

COLOURS = np.random.default_rng(0).integers(0, 256, (8, 10, 3), np.uint8)


def read(path: Path, height: int = 8, width: int = 10) -> NDArray[np.uint8]:
    """A image as (H, W, 3)."""
    pixels = read_image(path, (height, width))
    assert pixels.dtype == np.uint8
    assert pixels.shape == (3, height, width)
    return pixels.transpose(1, 2, 0)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_what_is_stored_without_loss_is_read_without_loss(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(COLOURS).save(path)
    assert (read(path) == COLOURS).all()


@pytest.mark.parametrize("suffix", ["jpg", "webp", "gif"])
def test_what_is_stored_with_loss_is_read_with_little_more(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"image.{suffix}"
    smooth = np.add.outer(np.arange(8) * 10, np.arange(10) * 8).astype(np.uint8)
    Image.fromarray(smooth).save(path)
    assert np.abs(read(path)[..., 1].astype(int) - smooth).max() <= 12


def test_grey_palette_and_deep_images_are_read(tmp_path: Path) -> None:
    path = tmp_path / "image.png"
    for image in (Image.fromarray(COLOURS[..., 0]), Image.fromarray(COLOURS[..., 0]).convert("P")):
        image.save(path)
        pixels = read_image(path, (8, 10))
        assert is_grey(pixels)
        assert (pixels[0] == COLOURS[..., 0]).all()
    Image.fromarray(COLOURS[..., 0].astype(np.uint16) * 257).save(path)
    assert (read(path)[..., 2] == COLOURS[..., 0]).all()


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    alpha = np.zeros((8, 10, 1), np.uint8)
    alpha[:, 5:] = 255
    Image.fromarray(np.concatenate([COLOURS, alpha], 2)).save(tmp_path / "image.png")
    pixels = read(tmp_path / "image.png")
    assert (pixels[:, :5] == 255).all()
    assert (pixels[:, 5:] == COLOURS[:, 5:]).all()


def test_a_camera_that_was_turned_is_turned_back(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    Image.fromarray(COLOURS).save(tmp_path / "image.png", exif=exif)
    assert (read(tmp_path / "image.png", 10, 8) == np.rot90(COLOURS, -1)).all()


def test_large_photos_are_reduced_smoothly(tmp_path: Path) -> None:
    """A fine chequerboard becomes its mean, not a pattern."""
    board = np.indices((640, 800)).sum(0) % 2 * 255
    for suffix in ("png", "jpg"):
        path = tmp_path / f"board.{suffix}"
        Image.fromarray(board.astype(np.uint8)).save(path, quality=95)
        assert np.abs(read(path).astype(int) - 127).max() <= 3


def test_grey_is_the_eyes_mean_of_the_colours() -> None:
    pixels = COLOURS.transpose(2, 0, 1)
    grey = to_channels(pixels, 1)
    assert grey.dtype == np.uint8
    assert grey.shape == (1, 8, 10)
    expected = np.tensordot([0.299, 0.587, 0.114], pixels, 1)
    assert np.abs(grey[0] - expected).max() <= 0.5 + 1e-9
    assert to_channels(pixels, 3) is pixels
    same = np.repeat(pixels[:1], 3, 0)
    assert (to_channels(same, 1) == pixels[:1]).all()


def test_bombs_are_refused(tmp_path: Path) -> None:
    Image.new("1", (10_000, 5_001)).save(tmp_path / "bomb.png")
    with pytest.raises(DataError, match=r"bomb\.png has more than 50 megapixels"):
        read_image(tmp_path / "bomb.png", (8, 8))
