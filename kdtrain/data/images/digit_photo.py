"""Photos and scans of digits, brought to the form of MNIST's images."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kdtrain.data.images.image_file import to_grey
from kdtrain.errors import DataError

_WORKING_SIDE = 400  # pixels; a larger image is searched at this size first, then enlarged around the digit
_FAINTEST = 12  # grey levels of 255 between ink and paper; smaller differences come from compression
_THINNEST = 1.75  # stroke width in pixels of the result; 95 of 100 digits of MNIST have wider strokes
_CERTAIN = 6.0  # standard deviations of the paper's noise, above which a pixel may be ink

Floats = NDArray[np.float64]


def to_mnist(image: Image.Image, size: tuple[int, int] = (28, 28)) -> NDArray[np.uint8]:
    """Brings an image of a digit to MNIST's form (http://yann.lecun.com/exdb/mnist/).

    The result has bright ink on black, whichever of ink and paper is brighter in the image. Paper,
    uneven light and noise are removed. The digit keeps its proportions, fits a box of 20 of the field's
    28 pixels, and has its centre of mass in the middle of the field.

    Args:
        image: an image of one digit, of any size and mode.
        size: height and width of the result, in pixels.

    Returns:
        (height, width) uint8, 0 where there is no ink.

    Raises:
        DataError: there is no ink, only paper.
    """
    ink = _find_ink(image if image.mode == "L" else to_grey(image))
    box = [max(1, round(side * 20 / 28)) for side in size]
    detail = max(ink[_box_around(ink)].shape) / max(box)
    if detail > 2:
        ink = _thicken(ink, detail)
        ink = ink[_box_around(ink, at_least=0.4)]
    else:  # of a small digit, faint pixels are strokes, not soft edges
        ink = ink[_box_around(ink)]
    ink = _scale(ink, box[0], box[1])
    field = np.zeros(size)
    top = _offset(ink, 0, size[0])
    left = _offset(ink, 1, size[1])
    field[top : top + ink.shape[0], left : left + ink.shape[1]] = ink / ink.max()
    result: NDArray[np.uint8] = np.rint(255 * field.clip(0, 1)).astype(np.uint8)
    return result


def _scale(ink: Floats, height: int, width: int) -> Floats:
    """Scales to the largest size within ``height`` and ``width`` that keeps the proportions."""
    factor = min(height / ink.shape[0], width / ink.shape[1])
    rows = max(1, min(round(ink.shape[0] * factor), height))
    columns = max(1, min(round(ink.shape[1] * factor), width))
    kernel = Image.Resampling.BOX if factor < 1 else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(ink.astype(np.float32)).resize((columns, rows), kernel), np.float64)


def _offset(ink: Floats, axis: int, length: int) -> int:
    """Returns where the ink begins so that its centre of mass is in the middle (MNIST's is pixel 14)."""
    profile = ink.sum(axis=1 - axis)
    centre = profile @ np.arange(len(profile)) / profile.sum()
    return int(min(max(round(length // 2 - centre), 0), length - len(profile)))


def _find_ink(image: Image.Image) -> Floats:
    """Returns the amount of ink in a part of the image that holds the digit.

    A digit that is small in ``image`` is searched again in an enlarged crop.

    Returns:
        (height, width) float64, 0 to 1.

    Raises:
        DataError: nothing stands out from the paper.
    """
    ink: Floats | None = None
    while True:
        shrink = min(1.0, _WORKING_SIDE / max(image.size))
        working = image
        if shrink < 1:
            width = max(1, round(image.width * shrink))
            height = max(1, round(image.height * shrink))
            working = image.resize((width, height), Image.Resampling.BOX, reducing_gap=2.0)
        clearer_ink = _look_for_ink(np.asarray(working, dtype=np.float64), closer=ink is not None)
        if clearer_ink is None:
            break  # shrinking averages noise away; in the enlarged crop it may hide a faint digit
        ink = clearer_ink
        rows, columns = _box_around(ink)
        longest = max(rows.stop - rows.start, columns.stop - columns.start)
        if shrink == 1 or 2 * longest > max(working.size):
            break
        margin = longest / 3
        image = image.crop(
            (
                max(0, int((columns.start - margin) / shrink)),
                max(0, int((rows.start - margin) / shrink)),
                min(image.width, int((columns.stop + margin) / shrink)),
                min(image.height, int((rows.stop + margin) / shrink)),
            )
        )
    if ink is None:
        raise DataError("no digit found: nothing stands out from the paper.")
    return ink


def _box_around(ink: NDArray[Any], at_least: float = 1e-9) -> tuple[slice, slice]:
    rows = np.flatnonzero(ink.max(axis=1) >= at_least)
    columns = np.flatnonzero(ink.max(axis=0) >= at_least)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _thicken(ink: Floats, detail: float) -> Floats:
    """Widens strokes that would be thinner than MNIST's.

    Args:
        ink: (H, W), 0 to 1.
        detail: how many pixels become one pixel of the result.
    """
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


def _look_for_ink(grey: Floats, closer: bool) -> Floats | None:
    """Returns the amount of ink in each pixel.

    Args:
        grey: brightness, (H, W), 0 to 255.
        closer: whether this is a crop around a digit, so that the digit does not touch the border.

    Returns:
        (H, W) float64, 0 to 1, exactly 0 outside the digit; None if there is no ink.
    """
    from scipy import ndimage

    side = max(grey.shape)
    grey = ndimage.gaussian_filter(grey, side / _WORKING_SIDE)
    relief = grey - _paper(grey)
    ink = _darker_or_lighter(grey, relief, side // 5, closer)
    if not closer and (ink is None or 2 * max(ink[_box_around(ink)].shape) > side):
        # Strokes of a digit that fills the image may be as wide as a shadow in other images.
        ink = _darker_or_lighter(grey, relief, side // 3, closer)
    return ink


def _paper(grey: Floats) -> Floats:
    """Returns the brightness of the paper, (H, W): a plane that is fitted to the border.

    The plane has the least absolute error, so a digit that reaches into the border does not bend it.
    """
    y = np.linspace(-1, 1, grey.shape[0])
    x = np.linspace(-1, 1, grey.shape[1])
    plane = np.stack(np.broadcast_arrays(1.0, x, y[:, None]), axis=-1)
    border = np.maximum(np.abs(x), np.abs(y)[:, None]) > 0.9
    terms, values = plane[border], grey[border]
    weights = np.ones_like(values)
    for _ in range(20):  # iteratively reweighted least squares
        fit = np.linalg.lstsq(terms * weights[:, None], values * weights, rcond=None)[0]
        weights = 1 / np.sqrt(np.maximum(np.abs(values - terms @ fit), 0.5))
    return np.asarray(plane @ fit)


def _darker_or_lighter(grey: Floats, relief: Floats, widest: int, closer: bool) -> Floats | None:
    """Returns the ink: the dark strokes or the light ones; None if there are neither."""
    dark = _strokes(-relief, widest, closer, shade_of=grey)
    light = _strokes(relief, widest, closer)
    if dark is None or light is None:
        return light if dark is None else dark
    # Paper enclosed by dark strokes looks like light strokes, and vice versa.
    dark_is_outside, light_is_outside = _encloses(dark, light), _encloses(light, dark)
    if dark_is_outside != light_is_outside:
        return dark if dark_is_outside else light
    return max(dark, light, key=lambda ink: _standing_out(ink, grey))


def _encloses(outer: Floats, inner: Floats) -> bool:
    """Returns whether the box around ``outer`` holds ``inner``; grains of noise enclose nothing."""
    pairs = zip(_box_around(outer), _box_around(inner), strict=True)
    boxed = all(a.start <= b.start + 2 and b.stop - 2 <= a.stop for a, b in pairs)
    return boxed and bool(20 * outer.sum() > inner.sum())


def _standing_out(ink: Floats, grey: Floats) -> float:
    """Returns the ratio of brightness between the ink and the pixels just outside its box."""
    rows, columns = _box_around(ink)
    around = np.zeros(ink.shape, dtype=bool)
    around[max(0, rows.start - 2) : rows.stop + 2, max(0, columns.start - 2) : columns.stop + 2] = True
    around[rows.start + 1 : rows.stop - 1, columns.start + 1 : columns.stop - 1] = False
    darker, lighter = sorted((float(np.median(grey[ink > 0.5])), float(np.median(grey[around]))))
    return lighter / (darker + _FAINTEST)


def _strokes(relief: Floats, widest: int, closer: bool, shade_of: Floats | None = None) -> Floats | None:
    """Returns the amount of ink, (H, W), 0 to 1, in the ridges of ``relief``; None if there are none.

    Ridges wider than ``widest`` pixels are no strokes: the desk beside the paper, a shadow on it.
    """
    from scipy import ndimage

    widest = max(9, widest)
    padded = np.pad(relief, widest)
    height = (padded - ndimage.grey_opening(padded, size=widest))[widest:-widest, widest:-widest]
    height -= float(np.median(height))
    noise = 1.4826 * float(np.median(np.abs(height)))
    candidates = height > max(_CERTAIN * noise, _FAINTEST)
    if not candidates.any():
        return None
    strength = height
    if shade_of is not None:  # in the shade, paper and ink differ less, in proportion
        paper = shade_of + height
        strength = height * paper.max() / np.maximum(paper, _FAINTEST)
    level = float(np.percentile(_upper_group(strength[candidates]), 75))
    digit = _without_specks(candidates & (strength > level / 2), closer)
    # Soft edges belong to the strokes: up to one pixel of the result.
    reach = max(1, round(max(digit[_box_around(digit)].shape) / 20))
    digit = ndimage.binary_dilation(digit, iterations=reach)
    return np.where(digit & (height > max(3 * noise, 1.0)), (strength / level).clip(0, 1), 0.0)


def _upper_group(values: Floats) -> Floats:
    """Returns the upper of two groups of values, (N,), split at Otsu's threshold.

    Otsu, "A Threshold Selection Method from Gray-Level Histograms" (1979): the split with the largest
    variance between the groups.
    """
    ordered = np.sort(values)
    below = np.arange(1, len(ordered))
    above = len(ordered) - below
    sums = np.cumsum(ordered)
    means = sums[:-1] / below, (sums[-1] - sums[:-1]) / above
    between = below * above * np.square(means[1] - means[0])
    return ordered[1 + int(np.argmax(between)) :] if len(between) else ordered


def _without_specks(mask: NDArray[np.bool_], closer: bool) -> NDArray[np.bool_]:
    """Returns the mask without the paper's edges, and without dust: spots under 1/20 of the largest one."""
    from scipy import ndimage

    spots, number = ndimage.label(mask, structure=np.ones((3, 3)))
    margin = max(1, max(mask.shape) // 12)
    interior, rim = np.zeros_like(mask), np.ones_like(mask)
    interior[margin:-margin, margin:-margin] = True
    rim[1:-1, 1:-1] = False
    area = np.bincount(spots[mask], minlength=number + 1)
    inside = np.bincount(spots[mask & interior], minlength=number + 1)
    touching = np.bincount(spots[mask & rim], minlength=number + 1)
    edge = (touching > 0) & (closer | (2 * inside < area))
    if not edge[area > 0].all():
        area[edge] = 0
    kept: NDArray[np.bool_] = mask & (area >= area.max() / 20)[spots]
    return kept
