"""Photos and scans of digits: reading them, and bringing them to the form of MNIST's images."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from kdtrain.errors import DataError

_FORMATS = ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM")  # none that starts another program
_MOST_PIXELS = 50_000_000
_WORKING_SIDE = 400  # pixels; a larger picture is searched at this size and then looked at more closely
_FAINTEST = 12  # grey levels of 255 between ink and paper; compression alone makes differences below
_THINNEST = 1.75  # pixels of the result; 95 of 100 digits of MNIST have wider strokes
_CERTAIN = 6.0  # standard deviations of the paper's noise

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
    except UnidentifiedImageError as error:
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
    box = [max(1, round(side * 20 / 28)) for side in size]
    detail = max(ink[_box_around(ink)].shape) / max(box)
    if detail > 2:  # else faint pixels are not soft edges of the strokes, but all there is of them
        ink = _thicken(ink, detail)
        ink = ink[_box_around(ink, at_least=0.4)]
    else:
        ink = ink[_box_around(ink)]
    shrink = min(box[0] / ink.shape[0], box[1] / ink.shape[1])
    height, width = (max(1, min(round(n * shrink), limit)) for n, limit in zip(ink.shape, box, strict=True))
    kernel = Image.Resampling.BOX if shrink < 1 else Image.Resampling.BILINEAR
    scaled = np.asarray(Image.fromarray(ink.astype(np.float32)).resize((width, height), kernel))
    field = np.zeros(size, np.float32)
    top, left = (_offset(scaled, axis, size[axis]) for axis in (0, 1))
    field[top : top + height, left : left + width] = scaled / scaled.max()
    result: NDArray[np.uint8] = np.rint(255 * field.clip(0, 1)).astype(np.uint8)
    return result


def _offset(ink: NDArray[np.float32], axis: int, length: int) -> int:
    """Where the ink has to begin for its centre of mass to be in the middle (MNIST's is pixel 14)."""
    profile = ink.sum(axis=1 - axis, dtype=np.float64)
    centre = profile @ np.arange(len(profile)) / profile.sum()
    return int(min(max(round(length // 2 - centre), 0), length - len(profile)))


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
    """Returns the amount of ink, 0 to 1, in a picture of the digit with some paper around it.

    A digit that is small in ``image`` is looked at again, enlarged.
    """
    while True:
        shrink = min(1.0, _WORKING_SIDE / max(image.size))
        working = image
        if shrink < 1:
            width, height = (max(1, round(side * shrink)) for side in image.size)
            working = image.resize((width, height), Image.Resampling.BOX, reducing_gap=2.0)
        ink = _separate_ink(np.asarray(working, dtype=np.float64))
        rows, columns = _box_around(ink)
        longest = max(rows.stop - rows.start, columns.stop - columns.start)
        if shrink == 1 or 2 * longest > max(working.size):
            return ink
        margin = longest / 3
        image = image.crop(
            (
                max(0, int((columns.start - margin) / shrink)),
                max(0, int((rows.start - margin) / shrink)),
                min(image.width, int((columns.stop + margin) / shrink)),
                min(image.height, int((rows.stop + margin) / shrink)),
            )
        )


def _box_around(ink: Floats, at_least: float = 1e-9) -> tuple[slice, slice]:
    rows, columns = (np.flatnonzero(ink.max(axis=axis) >= at_least) for axis in (1, 0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _thicken(ink: Floats, detail: float) -> Floats:
    """Widens strokes that would be thinner than MNIST's; ``detail`` pixels become one of the result."""
    from scipy import ndimage

    ink = np.pad(ink, round(detail))
    strokes = ink > 0.5
    # Across a stroke of width w, the distance to its edge is w / 4 on average.
    width = 4 * (ndimage.distance_transform_edt(strokes)[strokes].mean() - 0.5)
    missing = (_THINNEST * detail - width) / 2
    if missing <= 0:
        return ink
    widened: Floats = np.maximum(ink, (1 + missing - ndimage.distance_transform_edt(~strokes)).clip(0, 1))
    return widened


def _separate_ink(grey: Floats) -> Floats:
    """Returns the amount of ink in every pixel, 0 to 1, and exactly 0 off the digit.

    Raises:
        DataError: nothing stands out from the paper.
    """
    from scipy import ndimage

    grey = ndimage.gaussian_filter(grey, max(grey.shape) / _WORKING_SIDE)
    paper = _paper(grey)
    contrast = grey - paper
    noise = 1.4826 * float(np.median(np.abs(contrast)))
    certain = max(_CERTAIN * noise, _FAINTEST)
    dark, light = (np.square(side[side > certain]).sum() for side in (-contrast, contrast))
    shade = np.ones_like(paper)
    if dark >= light:  # paper in the shade makes the difference to dark ink smaller, in proportion
        contrast, shade = -contrast, np.maximum(paper, _FAINTEST) / paper.max()
    candidates = contrast > certain
    if not candidates.any():
        raise DataError("no digit found: nothing stands out from the paper.")
    strength = contrast / shade
    level = float(np.percentile(_upper_group(strength[candidates]), 75))
    digit = _without_specks(candidates & (strength > level / 2))
    # The strokes' soft edges belong to them: as far as one pixel of the result.
    rows, columns = np.nonzero(digit)
    reach = max(1, round(max(np.ptp(rows), np.ptp(columns)) / 20))
    digit = ndimage.binary_dilation(digit, iterations=reach)
    return np.where(digit & (contrast > max(3 * noise, 1.0)), (strength / level).clip(0, 1), 0.0)


def _paper(grey: Floats) -> Floats:
    """Fits the paper's brightness by a surface of second degree, so that uneven light is followed.

    It starts from the border, where the paper is, and goes on with all pixels close to the last fit.
    """
    height, width = grey.shape
    y, x = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    surface = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=-1)
    step = max(1, max(grey.shape) // 100)  # a hundred points a side are plenty for six numbers
    terms, values = surface[::step, ::step].reshape(-1, 6), grey[::step, ::step].ravel()
    border = np.abs(terms[:, 1:3]).max(axis=1) > 0.9
    chosen = border
    fit = _fit_median(terms[chosen], values[chosen])
    for _ in range(5):
        error = np.abs(values - terms @ fit)
        chosen = error <= max(3 * 1.4826 * float(np.median(error[chosen])), 2.0)
        fit = np.linalg.lstsq(terms[chosen], values[chosen], rcond=None)[0]
    paper = np.asarray(surface @ fit)
    if np.median(np.abs(grey - paper)) > 2 * _FAINTEST:  # a large digit at the border has bent the surface
        paper[:] = np.median(values[border])
    return paper


def _fit_median(terms: Floats, values: Floats) -> Floats:
    """Fits by least absolute error, which a digit that reaches into the border does not draw away."""
    weights = np.ones_like(values)
    for _ in range(20):
        fit: Floats = np.linalg.lstsq(terms * weights[:, None], values * weights, rcond=None)[0]
        weights = 1 / np.sqrt(np.maximum(np.abs(values - terms @ fit), 0.5))
    return fit


def _upper_group(values: Floats) -> Floats:
    """Returns the larger values, parted from the smaller ones where both vary least (Otsu, 1979)."""
    ordered = np.sort(values)
    below = np.arange(1, len(ordered))
    above = len(ordered) - below
    sums = np.cumsum(ordered)
    means = sums[:-1] / below, (sums[-1] - sums[:-1]) / above
    between = below * above * np.square(means[1] - means[0])
    return ordered[1 + int(np.argmax(between)) :] if len(between) else ordered


def _without_specks(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Drops the spots smaller than a twentieth of the largest one: dust, and remains of noise."""
    from scipy import ndimage

    labels, _ = ndimage.label(mask, structure=np.ones((3, 3)))
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    kept: NDArray[np.bool_] = (areas >= areas.max() / 20)[labels]
    return kept
