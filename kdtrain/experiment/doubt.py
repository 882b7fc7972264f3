"""The warning about an image that is probably nothing that a model can recognise.

docs/decisions/0045-warning-for-no-digit.md explains the rules; ``scripts/doubt`` measures them.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kdtrain.data.images.model_input import shows_digits
from kdtrain.metrics.tempered_softmax import tempered_softmax
from kdtrain.store.card import ModelCard

_LEAST_PROBABILITY = 0.6  # of the most probable class of a digit
_INK = 64  # grey levels of 255
_SECOND_PART = 0.2  # share of the ink, from which on a part may be a digit
_WIDEST = 1.7  # width of a digit's ink as a multiple of its height


def doubt(
    card: ModelCard,
    pixels: npt.NDArray[np.uint8],
    logits: npt.NDArray[np.float64],
    size: tuple[int, int],
) -> str | None:
    """Returns a sentence about why an image is probably nothing that a model can recognise.

    An image of less than half the model's size is too small for any model. The other rules are for
    models of digits.

    Args:
        card: the model's card.
        pixels: (C, H, W) uint8, the network's input.
        logits: (classes,) float64, the network's output.
        size: width and height of the image file in pixels.

    Returns:
        None for an image without reason for doubt.
    """
    _, height, width = card.image_shape
    if 2 * max(size) < max(height, width):
        small, usual = f"{size[0]} x {size[1]}", f"{width} x {height}"
        return f"Probably too small: it has only {small} pixels, the model's images have {usual}."
    if not shows_digits(card.dataset, card.image_shape, card.classes):
        return None
    reason = _strange_shape(pixels[0] >= _INK)
    best = float(tempered_softmax(logits, 1.0).max())
    if reason is None and best < _LEAST_PROBABILITY:
        reason = f"the most probable class has only {best:.1%}"
    return None if reason is None else f"Probably no single digit: {reason}."


def _strange_shape(ink: npt.NDArray[np.bool_]) -> str | None:
    """Returns what in the shape of the ink, (H, W), speaks against a single digit."""
    from scipy import ndimage

    parts, _ = ndimage.label(ink, structure=np.ones((3, 3)))
    areas = np.bincount(parts[ink])
    if len(areas) == 0:
        return None
    places = ndimage.find_objects(parts)
    first, *rest = (places[index - 1][1] for index in np.argsort(-areas, kind="stable") if areas[index])
    if rest and np.sort(areas)[-2] >= _SECOND_PART * areas.sum():
        second = rest[0]
        if first.stop <= second.start or second.stop <= first.start:
            return "the ink has two parts side by side"
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if columns[-1] - columns[0] + 1 > _WIDEST * (rows[-1] - rows[0] + 1):
        return "the ink is much wider than high"
    return None
