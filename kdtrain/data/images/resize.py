"""Image files of any size, scaled to the size of a network's images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kdtrain.data.images.image_file import Source, name_of, on_paper, open_image, to_grey
from kdtrain.errors import UsageError, size_text


def upright_size(path: Path) -> tuple[int, int]:
    """Returns height and width of an image, in pixels, as a viewer shows it upright.

    Raises:
        DataError: the image cannot be read.
    """
    width, height = open_image(path, lambda image: ImageOps.exif_transpose(image).size)
    return height, width


def read_image(source: Source, size: tuple[int, int], scale: bool = True) -> NDArray[np.uint8]:
    """Returns an image upright, on white where it is transparent, in a given size.

    It is scaled until it just covers the size; the rest is cropped, equally at both ends.

    Args:
        source: the image.
        size: height and width of the result, in pixels.
        scale: whether an image of another size may be scaled.

    Returns:
        (3, height, width) uint8: red, green and blue.

    Raises:
        DataError: the image cannot be read.
        UsageError: it has another size, and must not be scaled.
    """

    def convert(image: Image.Image) -> NDArray[np.uint8]:
        if scale:
            image.draft(None, (max(size), max(size)))  # JPEG can skip detail that scaling would remove
        upright = to_rgb(ImageOps.exif_transpose(image))
        if upright.size != size[::-1] and not scale:
            raise UsageError(
                f"{name_of(source)} is {upright.height}x{upright.width}, others are {size_text(size)}: "
                "bring all images to one size with --image-size N."
            )
        if upright.size != size[::-1]:
            upright = ImageOps.fit(upright, size[::-1], Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(upright).transpose(2, 0, 1))

    return open_image(source, convert)


def is_grey(pixels: NDArray[np.uint8]) -> bool:
    """Returns whether an image, (3, H, W) uint8, has no colour."""
    red, green, blue = pixels
    return bool(np.array_equal(red, green) and np.array_equal(red, blue))


def to_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Returns an image in another number of channels; the values of a grey image do not change.

    Args:
        pixels: (3, H, W) uint8.
        channels: 1 or 3.

    Returns:
        (channels, H, W) uint8.
    """
    if channels == 3:
        return pixels
    weights = np.array([299, 587, 114], np.uint32).reshape(3, 1, 1)  # ITU-R BT.601
    grey: NDArray[np.uint32] = ((pixels * weights).sum(0, keepdims=True) + 500) // 1000
    return grey.astype(np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image as 8-bit RGB, on white where it is transparent."""
    if image.mode.startswith(("I", "F")):
        return to_grey(image).convert("RGB")
    return on_paper(image).convert("RGB")
