"""Reads a picture that a stranger may have made, from a file or from bytes, in bounded memory."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kdtrain.errors import DataError, KdtrainError
from kdtrain.runtime.locations import sought
from kdtrain.runtime.regular_files import open_regular

T = TypeVar("T")
Source = Path | bytes
"""A file, or what one would hold."""

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")  # none that starts another program
_MOST_PIXELS = 50_000_000
_LONGEST_SIDE = 65_535  # JPEG's; to shrink a single line of 50 million pixels takes a minute
_MOST_PIXELS_OF_WEBP = 25_000_000  # its decoder needs 16 bytes for each
_MOST_WORK = 1_000_000_000  # pixels times the scans that a JPEG draws them in: some seconds
_BAND = 1_000_000  # pixels that are turned to grey at once, to keep memory small


def open_image(source: Source, convert: Callable[[Image.Image], T]) -> T:
    """Returns what ``convert`` makes of a picture, which has not been decoded yet.

    Of an animation it gets the first frame.

    Raises:
        DataError: the file is missing, no picture, damaged, or of more than 50 megapixels (WebP: 25).
    """
    name = name_of(source)
    try:
        with warnings.catch_warnings(), _open(source) as file:
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            _check_webp(file, name)
            with Image.open(file, formats=_FORMATS) as image:
                _check_size(image, file, name)
                return convert(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name} has more than 50 megapixels; scale or crop it first.") from error
    except KdtrainError:
        raise
    except UnidentifiedImageError as error:
        kinds = ", ".join(_FORMATS)
        raise DataError(f"{name} is not a picture of a kind that can be read ({kinds}).") from error
    except FileNotFoundError as error:
        raise DataError(f"{sought(name)} does not exist.") from error
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise DataError(f"{name} cannot be read as a picture: {reason.rstrip('.')}.") from error


def name_of(source: Source) -> str:
    """Returns what a message calls the picture."""
    return "the file" if isinstance(source, bytes) else str(source)


def _open(source: Source) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)


def read_grey(source: Source) -> Image.Image:
    """Returns a picture as 8-bit grey (mode L), upright, on white where it is transparent.

    Raises:
        DataError: as ``open_image``.
    """

    def convert(image: Image.Image) -> Image.Image:
        ImageOps.exif_transpose(image, in_place=True)
        return to_grey(image)

    return open_image(source, convert)


def _check_webp(file: BinaryIO, name: str) -> None:
    """Raises DataError for a large WebP picture: its decoder takes all its memory when it is opened."""
    head = file.read(30)
    file.seek(0)
    if head[:4] != b"RIFF" or head[8:12] != b"WEBP":
        return
    whole = int.from_bytes(head, "little")
    # By the kind of the first chunk: where width and height are, in bits, how wide, and what is added.
    first, second, bits, more = {
        b"VP8X": (192, 216, 24, 1),
        b"VP8L": (168, 182, 14, 1),
    }.get(head[12:16], (208, 224, 14, 0))
    width, height = (more + (whole >> start & (1 << bits) - 1) for start in (first, second))
    if width * height > _MOST_PIXELS_OF_WEBP:
        raise DataError(f"{name} has more than 25 megapixels; scale or crop it first.")


def _check_size(image: Image.Image, file: BinaryIO, name: str) -> None:
    """Raises DataError if a picture that has not been decoded yet would take much memory or time."""
    pixels = image.width * image.height
    if pixels > _MOST_PIXELS:
        raise Image.DecompressionBombError
    if max(image.size) > _LONGEST_SIDE:
        raise DataError(f"{name} is more than {_LONGEST_SIDE:,} pixels wide or high; crop it first.")
    if image.format == "JPEG" and pixels * _scans(file) > _MOST_WORK:
        raise DataError(f"{name} is drawn in far more scans than any camera makes; save it anew.")


def _scans(file: BinaryIO) -> int:
    """Returns in how many passes a JPEG draws its pixels: 75 bytes are enough for one over all of them."""
    file.seek(0)
    return sum(piece.count(b"\xff\xda") for piece in iter(lambda: file.read(1 << 20), b""))


def to_grey(image: Image.Image) -> Image.Image:
    """Returns a picture of any mode as 8-bit grey (mode L), on white where it is transparent."""
    low, high = 0.0, 65535.0
    if image.mode.startswith(("I", "F")):  # 16 bits and more, which convert("L") would cut off at 255
        extremes = [float(f(_values(band))) for _, band in _bands(image) for f in (np.min, np.max)]
        if image.mode == "F" or min(extremes) < low or max(extremes) > high:
            low, high = min(extremes), max(extremes)
    grey = Image.new("L", image.size)
    for top, band in _bands(image):
        grey.paste(_band_to_grey(band, low, high), (0, top))
    return grey


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yields where each part of the picture begins, and the part."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _values(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image)).astype(np.float64)


def _band_to_grey(image: Image.Image, low: float, high: float) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        levels = (_values(image) - low) * (255 / max(high - low, 1e-300))
        return Image.fromarray(np.rint(levels).astype(np.uint8))
    return on_paper(image).convert("L")


def on_paper(image: Image.Image) -> Image.Image:
    """Returns a picture on white where it is transparent."""
    if not image.has_transparency_data:
        return image
    colours = image.convert("RGBA")
    paper = Image.new("RGBA", image.size, "white")
    paper.alpha_composite(colours)
    return paper
