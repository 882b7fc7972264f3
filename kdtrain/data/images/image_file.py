"""Untrusted image files, or their bytes: opened in bounded time and memory, and turned to grey."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kdtrain.errors import DataError, KdtrainError, os_reason
from kdtrain.runtime.locations import missing_path_text
from kdtrain.runtime.regular_files import open_regular

T = TypeVar("T")
Source = Path | bytes
"""A file, or its content."""

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")  # their decoders start no other program
_MOST_PIXELS = 50_000_000
_LONGEST_SIDE = 65_535  # pixels, as JPEG's; shrinking one line of 50 million pixels takes a minute
_MOST_PIXELS_OF_WEBP = 25_000_000  # its decoder needs 16 bytes a pixel
_MOST_WORK = 1_000_000_000  # pixels times the scans of a JPEG: some seconds
_WEBP_HEADER = 30  # bytes: RIFF header, and the first chunk's fields
_VISIBLE = 64  # of 255: pixels of less opacity are soft edges
_DARK = 0.02  # share of dark pixels that light ink has at most, from soft edges and compression
_COVERED = 0.9  # share of visible pixels above which an image has paper of its own
_BAND = 1_000_000  # pixels turned to grey at once, to bound memory


def open_image(source: Source, convert: Callable[[Image.Image], T]) -> T:
    """Returns ``convert(image)``, where the image is open but not decoded yet.

    ``convert`` gets the first frame of an animation.

    Raises:
        DataError: the file is missing, no image, damaged, or of more than 50 megapixels (WebP: 25).
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
        raise DataError(f"{name} is not an image in a format that can be read ({kinds}).") from error
    except FileNotFoundError as error:
        raise DataError(f"{missing_path_text(name)} does not exist.") from error
    except Exception as error:  # Pillow's decoders raise almost any exception
        raise DataError(f"{name} cannot be read as an image: {os_reason(error).rstrip('.')}.") from error


def name_of(source: Source) -> str:
    """Returns the name of an image in messages."""
    return "the file" if isinstance(source, bytes) else str(source)


def _open(source: Source) -> BinaryIO:
    return io.BytesIO(source) if isinstance(source, bytes) else open_regular(source)


def read_grey(source: Source) -> Image.Image:
    """Returns an image as 8-bit grey (mode L), upright, on ``paper_of`` where it is transparent.

    Raises:
        DataError: as in ``open_image``.
    """

    def convert(image: Image.Image) -> Image.Image:
        ImageOps.exif_transpose(image, in_place=True)
        return to_grey(image)

    return open_image(source, convert)


def _check_webp(file: BinaryIO, name: str) -> None:
    """Raises DataError for a large WebP image: its decoder allocates all its memory when it is opened."""
    header = file.read(_WEBP_HEADER).ljust(_WEBP_HEADER, b"\0")
    file.seek(0)
    if header[:4] != b"RIFF" or header[8:12] != b"WEBP":
        return
    width, height = _webp_size(header)
    if width * height > _MOST_PIXELS_OF_WEBP:
        raise DataError(f"{name} has more than 25 megapixels; scale or crop it first.")


def _webp_size(header: bytes) -> tuple[int, int]:
    """Returns width and height from the first chunk of a WebP file (RFC 9649, section 2)."""
    kind = header[12:16]
    if kind == b"VP8X":  # the canvas: two numbers of 24 bits, less 1
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", header, 24)
        return 1 + (high_width << 16 | low_width), 1 + (high_height << 16 | low_height)
    if kind == b"VP8L":  # a signature byte, then two numbers of 14 bits, less 1
        (bits,) = struct.unpack_from("<I", header, 21)
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", header, 26)  # VP8: above 14 bits there is a scale
    return width & 0x3FFF, height & 0x3FFF


def _check_size(image: Image.Image, file: BinaryIO, name: str) -> None:
    """Raises DataError for an image whose decoding would take too much memory or time."""
    pixels = image.width * image.height
    if pixels > _MOST_PIXELS:
        raise Image.DecompressionBombError
    if max(image.size) > _LONGEST_SIDE:
        raise DataError(f"{name} is more than {_LONGEST_SIDE:,} pixels wide or high; crop it first.")
    if image.format == "JPEG" and pixels * _scans(file) > _MOST_WORK:
        raise DataError(f"{name} has far more scans than a camera writes; save it again.")


def _scans(file: BinaryIO) -> int:
    """Returns the number of scans of a JPEG; a scan over all pixels takes as few as 75 bytes."""
    file.seek(0)
    return sum(piece.count(b"\xff\xda") for piece in iter(lambda: file.read(1 << 20), b""))


def to_grey(image: Image.Image) -> Image.Image:
    """Returns an image of any mode as 8-bit grey (mode L), on ``paper_of`` where it is transparent."""
    paper = paper_of(image)
    low, high = 0.0, 65535.0
    if image.mode.startswith(("I", "F")):  # 16 bits and more: convert("L") would clip at 255
        extremes = [float(f(_values(band))) for _, band in _bands(image) for f in (np.min, np.max)]
        if image.mode == "F" or min(extremes) < low or max(extremes) > high:
            low, high = min(extremes), max(extremes)
    grey = Image.new("L", image.size)
    for top, band in _bands(image):
        grey.paste(_band_to_grey(band, low, high, paper), (0, top))
    return grey


def _bands(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yields bands of rows, each with the row that it begins at."""
    rows = max(1, _BAND // image.width)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _values(image: Image.Image) -> NDArray[np.float64]:
    return np.nan_to_num(np.asarray(image)).astype(np.float64)


def _band_to_grey(image: Image.Image, low: float, high: float, paper: str) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        levels = (_values(image) - low) * (255 / max(high - low, 1e-300))
        return Image.fromarray(np.rint(levels).astype(np.uint8))
    return on_paper(image, paper).convert("L")


def _is_transparent(image: Image.Image) -> bool:
    """Returns whether an image may have transparent parts; grey of 16 bits and more is taken as it is."""
    return image.has_transparency_data and not image.mode.startswith(("I", "F"))


def paper_of(image: Image.Image) -> str:
    """Returns the paper for a drawing's transparent parts on which its ink is visible: white or black.

    The paper is black for light ink: if nearly all visible pixels are light, and a tenth of the image or
    more is transparent. Where less is transparent, the image shows paper of its own.
    """
    if not _is_transparent(image):
        return "white"
    visible = np.zeros(256)
    for _, band in _bands(image):
        colours = band.convert("RGBA")
        mask = colours.getchannel("A").point(lambda alpha: 255 if alpha >= _VISIBLE else 0)
        visible += colours.convert("RGB").convert("L").histogram(mask)
    shown, dark = visible.sum(), visible[:128].sum()
    return "black" if dark < _DARK * shown and shown <= _COVERED * image.width * image.height else "white"


def on_paper(image: Image.Image, colour: str = "white") -> Image.Image:
    """Returns an image on paper of this colour where it is transparent."""
    if not _is_transparent(image):
        return image
    colours = image.convert("RGBA")
    paper = Image.new("RGBA", image.size, colour)
    paper.alpha_composite(colours)
    return paper
