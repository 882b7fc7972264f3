"""Picture files of any size: reading them, and bringing them to the form of a network's images."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kdtrain.errors import DataError, KdtrainError, UsageError

T = TypeVar("T")

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")  # none that starts another program
_MOST_PIXELS = 50_000_000


def open_picture(path: Path, convert: Callable[[Image.Image], T]) -> T:
    """Returns what ``convert`` makes of the picture in a file.

    Of an animation it gets the first frame.

    Raises:
        DataError: the file is missing, no picture, damaged, or of more than 50 megapixels.
    """
    try:
        with warnings.catch_warnings(), path.open("rb") as file:
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file, formats=_FORMATS) as image:
                if image.width * image.height > _MOST_PIXELS:
                    raise Image.DecompressionBombError
                return convert(image)
    except KdtrainError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} has more than 50 megapixels; scale or crop it first.") from error
    except UnidentifiedImageError as error:
        kinds = ", ".join(_FORMATS)
        raise DataError(f"{path} is not a picture of a kind that can be read ({kinds}).") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not a picture.") from error
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{path} cannot be read as a picture: {reason.rstrip('.')}.") from error


def picture_size(path: Path) -> tuple[int, int]:
    """Returns height and width of a picture as it is seen upright.

    Raises:
        DataError: it cannot be read.
    """
    width, height = open_picture(path, lambda image: ImageOps.exif_transpose(image).size)
    return height, width


def read_picture(path: Path, size: tuple[int, int], scale: bool = True) -> NDArray[np.uint8]:
    """Returns a picture upright, on white where it is transparent, in a given size.

    It is scaled so that it just covers the size, and what sticks out is cut off at both ends alike.

    Args:
        path: the file.
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
                f"{path} is {picture.height}x{picture.width}, others are {size[0]}x{size[1]}: "
                "bring all pictures to one size with --image-size N."
            )
        if picture.size != size[::-1]:
            picture = ImageOps.fit(picture, size[::-1], Image.Resampling.BILINEAR)
        return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))

    return open_picture(path, convert)


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


def to_grey(image: Image.Image) -> Image.Image:
    """Returns a picture as 8-bit grey (mode L), on white where it is transparent."""
    if image.mode.startswith(("I", "F")):
        return _deep_to_grey(image)
    return _on_paper(image).convert("L")


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns a picture as 8-bit RGB, on white where it is transparent."""
    if image.mode.startswith(("I", "F")):
        return _deep_to_grey(image).convert("RGB")
    return _on_paper(image).convert("RGB")


def _deep_to_grey(image: Image.Image) -> Image.Image:
    """Scales 16 bits and more, which convert("L") would cut off at 255."""
    values = np.nan_to_num(np.asarray(image)).astype(np.float64)
    low, high = 0.0, 65535.0
    if image.mode == "F" or values.min() < low or values.max() > high:
        low, high = values.min(), values.max()
    return Image.fromarray(np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8))


def _on_paper(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image
    colours = image.convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(colours)
    return paper
