"""Photos and scans of digits: reading them, and bringing them to the form of MNIST's images."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from kdtrain.errors import DataError

_FORMATS = ("PNG", "JPEG", "MPO", "GIF", "BMP", "TIFF", "WEBP", "PPM")  # none that starts another program
_MOST_PIXELS = 50_000_000
_WORKING_SIDE = 400  # pixels; a larger picture is searched at this size and then looked at more closely
_FAINTEST = 12  # grey levels of 255 between ink and paper; compression alone makes differences below
_CERTAIN = 4.0  # standard deviations of the paper's noise

Floats = NDArray[np.float64]


def read_photo(path: Path) -> Image.Image:
    """Returns the picture in a file as 8-bit grey (mode L), upright, on white where it is transparent.

    Of an animation it is the first frame.

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
                return _to_grey(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{path} has more than 50 megapixels; scale or crop it first.") from error
    except Image.UnidentifiedImageError as error:
        kinds = ", ".join(_FORMATS)
        raise DataError(f"{path} is not a picture of a kind that can be read ({kinds}).") from error
    except FileNotFoundError as error:
        raise DataError(f"{path} does not exist.") from error
    except IsADirectoryError as error:
        raise DataError(f"{path} is a folder, not a picture.") from error
    except Exception as error:  # damaged files make Pillow's decoders raise nearly anything
        raise DataError(f"{path} cannot be read as a picture: {error}.") from error


def to_mnist(image: Image.Image, size: tuple[int, int] = (28, 28)) -> NDArray[np.uint8]:
    """Brings a picture of a digit to the form in which MNIST shows digits.

    Bright ink on black, whichever is brighter in the picture; paper, lighting and noise taken away; cropped
    to the ink; scaled, keeping its proportions, to a box of 20/28 of the field; the ink's centre of
    mass in the middle of the field.

    Args:
        image: a picture with one digit, of any size and mode; the paper fills most of its border.
        size: height and width of the result.

    Returns:
        uint8 (height, width), 0 where there is no ink.

    Raises:
        DataError: there is no ink, only paper.
    """
    ink = _find_ink(image if image.mode == "L" else _to_grey(image))
    height, width = size
    box = max(1, round(height * 20 / 28)), max(1, round(width * 20 / 28))
    shrink = min(box[0] / ink.shape[0], box[1] / ink.shape[1])
    scaled_size = [max(1, min(round(n * shrink), limit)) for n, limit in zip(ink.shape, box, strict=True)]
    kernel = Image.Resampling.BOX if shrink < 1 else Image.Resampling.BILINEAR
    scaled = np.asarray(Image.fromarray(ink.astype(np.float32)).resize(scaled_size[::-1], kernel))
    field = np.zeros(size, np.float32)
    top, left = (_offset(scaled, axis, size[axis]) for axis in (0, 1))
    field[top : top + scaled.shape[0], left : left + scaled.shape[1]] = scaled / scaled.max()
    return np.rint(255 * field.clip(0, 1)).astype(np.uint8)


def _offset(ink: NDArray[np.float32], axis: int, length: int) -> int:
    """Where the ink has to begin for its centre of mass to be in the middle (MNIST's is pixel 14)."""
    profile = ink.sum(axis=1 - axis, dtype=np.float64)
    centre = profile @ np.arange(len(profile)) / profile.sum()
    return min(max(round(length // 2 - centre), 0), length - len(profile))


def _to_grey(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):  # 16 bits and more, which convert("L") would cut off at 255
        values = np.nan_to_num(np.asarray(image, dtype=np.float64))
        low, high = 0.0, 65535.0
        if image.mode == "F" or values.min() < low or values.max() > high:
            low, high = values.min(), values.max()
        return Image.fromarray(np.rint((values - low) * (255 / max(high - low, 1e-300))).astype(np.uint8))
    if image.has_transparency_data:
        colours = image.convert("RGBA")
        paper = Image.new("RGBA", image.size, "white")
        paper.alpha_composite(colours)
        return paper.convert("L")
    return image.convert("L")


def _find_ink(image: Image.Image) -> Floats:
    """Returns the amount of ink, 0 to 1, in the box around the digit.

    A digit that is small in the picture is looked at again, enlarged, on the paper around it.
    """
    while True:
        shrink = min(1.0, _WORKING_SIDE / max(image.size))
        working = image
        if shrink < 1:
            sides = [max(1, round(side * shrink)) for side in image.size]
            working = image.resize((sides[0], sides[1]), Image.Resampling.BOX, reducing_gap=2.0)
        ink = _separate_ink(np.asarray(working, dtype=np.float64))
        rows, columns = (np.flatnonzero(ink.any(axis=axis)) for axis in (1, 0))
        top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
        longest = max(bottom - top, right - left)
        if shrink == 1 or 2 * longest > max(working.size):
            return ink[top:bottom, left:right]
        margin = longest / 3
        corners = np.array([left - margin, top - margin, right + margin, bottom + margin]) / shrink
        limits = [*image.size, *image.size]
        image = image.crop(
            tuple(int(min(max(c, 0), limit)) for c, limit in zip(corners, limits, strict=True))
        )


def _separate_ink(grey: Floats) -> Floats:
    """Returns the amount of ink in every pixel, 0 to 1, and exactly 0 off the digit.

    Raises:
        DataError: nothing stands out from the paper.
    """
    from scipy import ndimage

    grey = ndimage.gaussian_filter(grey, max(grey.shape) / _WORKING_SIDE)
    contrast = grey - _paper(grey)
    noise = 1.4826 * float(np.median(np.abs(contrast)))
    certain = max(_CERTAIN * noise, _FAINTEST)
    dark, light = (np.square(side[side > certain]).sum() for side in (-contrast, contrast))
    contrast = contrast if light > dark else -contrast
    candidates = contrast[contrast > certain]
    if not len(candidates):
        raise DataError("no digit found: nothing stands out from the paper.")
    level = float(candidates[candidates >= _otsu(candidates)].mean())
    digit = _without_specks(contrast > level / 2)
    # The strokes' soft edges belong to them: as far as one pixel of the result.
    rows, columns = np.nonzero(digit)
    reach = max(1, round(max(np.ptp(rows), np.ptp(columns)) / 20))
    digit = ndimage.binary_dilation(digit, iterations=reach)
    return np.where(digit & (contrast > level / 10), (contrast / level).clip(0, 1), 0.0)


def _paper(grey: Floats) -> Floats:
    """Fits the paper's brightness by a surface of second degree, so that uneven light is followed.

    It starts from the median of the border and goes on with the pixels close to the last fit.
    """
    height, width = grey.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1).reshape(-1, 6)
    values = grey.ravel()
    step = max(1, len(values) // 10_000)
    border = np.maximum(np.abs(x), np.abs(y)).ravel() > 0.8
    chosen = border
    fit = np.zeros(6)
    for _ in range(10):
        fit = np.linalg.lstsq(terms[chosen][::step], values[chosen][::step], rcond=None)[0]
        error = np.abs(values - terms @ fit)
        chosen = error <= max(3 * 1.4826 * float(np.median(error[chosen])), 2.0)
    return (terms @ fit).reshape(grey.shape)


def _otsu(values: Floats) -> float:
    """Returns the threshold that parts ``values`` into the two groups of least variance (Otsu 1979)."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * np.square(sums / below - (sums[-1] - sums) / above)
    return float(edges[1 + int(np.nanargmax(np.append(between[:-1], 0.0)))])


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drops the spots smaller than a twentieth of the largest one: dust, and remains of noise."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    kept: NDArray[np.bool_] = (areas >= areas.max() / 20)[labels]
    return kept
