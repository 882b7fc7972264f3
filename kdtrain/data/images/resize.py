"""Picture files of any size: reading them, and bringing them to the form of a network's images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kdtrain.data.images.image_file import Source, name_of, on_paper, open_image, to_grey
from kdtrain.errors import UsageError


def upright_size(path: Path) -> tuple[int, int]:
    """Returns height and width of a picture as it is seen upright.

    Raises:
        DataError: it cannot be read.
    """
    width, height = open_image(path, lambda image: ImageOps.exif_transpose(image).size)
    return height, width


def read_image(source: Source, size: tuple[int, int], scale: bool = True) -> NDArray[np.uint8]:
    """Returns a picture upright, on white where it is transparent, in a given size.

    It is scaled so that it just covers the size, and what sticks out is cut off at both ends alike.

    Args:
        source: the file.
        size: height and width of the result.
        scale: whether a picture of another size may be scaled.

    Returns:
        uint8 (3, height, width), red, green and blue.

    Raises:
        DataError: it cannot be read.
        UsageError: it has another size, and must not be scaled.
    """

    def convert(image: Image.Image) -> NDArray[np.uint8]:
        if scale:
            image.draft(None, (max(size), max(size)))  # lets JPEG skip detail that would be scaled away
        picture = to_rgb(ImageOps.exif_transpose(image))
        if picture.size != size[::-1] and not scale:
            raise UsageError(
                f"{name_of(source)} is {picture.height}x{picture.width}, others are {size[0]}x{size[1]}: "
                "bring all pictures to one size with --image-size N."
            )
        if picture.size != size[::-1]:
            picture = ImageOps.fit(picture, size[::-1], Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))

    return open_image(source, convert)


def is_grey(pixels: NDArray[np.uint8]) -> bool:
    """Whether a picture, uint8 (3, H, W), has no colour."""
    red, green, blue = pixels
    return bool(np.array_equal(red, green) and np.array_equal(red, blue))


def to_channels(pixels: NDArray[np.uint8], channels: int) -> NDArray[np.uint8]:
    """Returns a picture, uint8 (3, H, W), in 1 or 3 channels; a grey one's value stays what it is."""
    if channels == 3:
        return pixels
    weights = np.array([299, 587, 114], np.uint32).reshape(3, 1, 1)  # ITU-R BT.601
    grey: NDArray[np.uint32] = ((pixels * weights).sum(0, keepdims=True) + 500) // 1000
    return grey.astype(np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns a picture as 8-bit RGB, on white where it is transparent."""
    if image.mode.startswith(("I", "F")):
        return to_grey(image).convert("RGB")
    return on_paper(image).convert("RGB")
