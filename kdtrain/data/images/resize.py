"""Images in the size, channels and normalisation that a network takes: from files, and from arrays."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kdtrain.data.dataset import Normalization
from kdtrain.data.images.image_file import Source, name_of, on_paper, open_image, to_grey
from kdtrain.errors import UsageError, size_text

Images = NDArray[np.float32]

_LUMA = (299, 587, 114)  # thousandths of red, green and blue: ITU-R BT.601


def upright_size(path: Path) -> tuple[int, int]:
    """Returns height and width of an image, in pixels, as a viewer shows it upright.

    Raises:
        DataError: the image cannot be read.
    """
    width, height = open_image(path, lambda image: ImageOps.exif_transpose(image).size)
    return height, width


def read_image(
    source: Source, size: tuple[int, int], scale: bool = True, part: tuple[int, int] | None = None
) -> NDArray[np.uint8]:
    """Returns an image upright, on white where it is transparent, in a given size.

    It is scaled until it just covers the size; the rest is cropped, equally at both ends.

    Args:
        source: the image.
        size: height and width of the result, in pixels.
        scale: whether an image of another size may be scaled.
        part: height and width that the part of the image that is seen covers just; ``size`` by default.

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
        if part is not None and part[0] * size[1] != part[1] * size[0]:
            upright = upright.crop(_centre(upright.size, part))
            upright = upright.resize(size[::-1], Image.Resampling.BILINEAR)
        if upright.size != size[::-1]:
            upright = ImageOps.fit(upright, size[::-1], Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(upright).transpose(2, 0, 1))

    return open_image(source, convert)


def _centre(size: tuple[int, int], part: tuple[int, int]) -> tuple[int, int, int, int]:
    """Returns the box of the centre of an image (width, height) that has the proportions of a part."""
    scale = min(size[0] / part[1], size[1] / part[0])
    width, height = max(1, round(part[1] * scale)), max(1, round(part[0] * scale))
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return left, top, left + width, top + height


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
    weights = np.array(_LUMA, np.uint32).reshape(3, 1, 1)
    grey: NDArray[np.uint32] = ((pixels * weights).sum(0, keepdims=True) + 500) // 1000
    return grey.astype(np.uint8)


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns an image as 8-bit RGB, on white where it is transparent."""
    if image.mode.startswith(("I", "F")):
        return to_grey(image).convert("RGB")
    return on_paper(image).convert("RGB")


@dataclass(frozen=True)
class InputForm:
    """The form in which a network takes images.

    Attributes:
        shape: channels, height, width.
        normalization: mean and standard deviation per channel, of pixels scaled to 0..1.
    """

    shape: tuple[int, int, int]
    normalization: Normalization


class InputConversion:
    """Brings images from the form of one network to that of another.

    Grey images get three equal channels, and colours become their luma (ITU-R BT.601). Sizes are changed by
    linear interpolation; a smaller image averages over the pixels that it leaves out.

    Args:
        source: the form of the images.
        target: the form that is wanted.
    """

    def __init__(self, source: InputForm, target: InputForm) -> None:
        self.source, self.target = source, target
        (channels, *size), (wanted, *wanted_size) = source.shape, target.shape
        before, after = source.normalization, target.normalization
        mixing = _channel_matrix(channels, wanted)
        self._mixing = (mixing * before.std / np.array(after.std)[:, None]).astype(np.float32)
        offset = (mixing @ before.mean - after.mean) / np.array(after.std)
        self._offset = offset.astype(np.float32).reshape(-1, 1, 1)
        self._resizing = (
            None
            if size == wanted_size
            else (resize_matrix(size[0], wanted_size[0]), resize_matrix(size[1], wanted_size[1]).T)
        )

    def __call__(self, images: Images) -> Images:
        """Returns images in the target's form, (B, C', H', W') float32, from (B, C, H, W) float32."""
        if self._resizing is not None:
            rows, columns = self._resizing
            images = rows @ images @ columns
        batch, channels, height, width = images.shape
        if self._mixing.shape == (1, 1):
            mixed = images * self._mixing[0, 0]
        else:
            flat = images.reshape(batch, channels, height * width)
            mixed = (self._mixing @ flat).reshape(batch, -1, height, width)
        converted: Images = mixed + self._offset
        return converted

    def __repr__(self) -> str:
        return f"InputConversion({self.source}, {self.target})"


def resize_matrix(size: int, wanted: int) -> NDArray[np.float32]:
    """Returns the matrix, (wanted, size) float32, that resizes a row of pixels by linear interpolation.

    Each new pixel is a mean of old ones whose weights fall linearly to 0, at the distance of one old pixel
    where the row grows, and of one new pixel where it shrinks, as Pillow's BILINEAR has it.

    Args:
        size: pixels of the row.
        wanted: pixels of the new row.
    """
    scale = size / wanted
    centres = (np.arange(wanted) + 0.5) * scale
    distance = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(1.0 - distance, 0.0)
    matrix: NDArray[np.float32] = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return matrix


def _channel_matrix(channels: int, wanted: int) -> NDArray[np.float64]:
    """Returns the matrix, (wanted, channels) float64, between 1 and 3 channels."""
    if channels == wanted:
        return np.eye(channels)
    return np.array([_LUMA]) / 1000 if wanted == 1 else np.ones((3, 1))
