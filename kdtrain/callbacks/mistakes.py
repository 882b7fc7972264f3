"""The held-out images that a network gets wrong with the most confidence, drawn as one image."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kdtrain.data.loader import Loader

if TYPE_CHECKING:  # Pillow's fonts are imported when something is drawn
    from PIL.ImageDraw import ImageDraw
    from PIL.ImageFont import FreeTypeFont

SHOWN = 8
"""The largest number of mistakes in one drawing."""
_COLUMNS = 4
_SIDE, _LINE, _GAP, _HEAD = 74, 13, 8, 24
"""Side of an image's field, heights of a line of text and of the heading, space between fields; in pixels.

Four fields are as wide as TensorBoard shows an image, so that it does not reduce the text.
"""
_INK, _QUIET = (22, 25, 29), (95, 95, 95)


@dataclass(frozen=True)
class Mistake:
    """A misclassified image.

    Attributes:
        position: its position in the loader.
        predicted: the predicted class.
        probability: of that class, 0..1.
    """

    position: int
    predicted: int
    probability: float


def confident_mistakes(
    logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64], most: int = SHOWN
) -> list[Mistake]:
    """Returns misclassified images, by falling probability of the predicted class.

    Args:
        logits: (N, C) float32.
        targets: labels, (N,) int64.
        most: the largest number of images to return.
    """
    predicted = logits.argmax(axis=1)
    wrong = np.flatnonzero(predicted != targets)
    scores = logits[wrong].astype(np.float64)
    probabilities = 1.0 / np.exp(scores - scores.max(axis=1, keepdims=True)).sum(axis=1)
    order = np.argsort(-probabilities, kind="stable")[:most]
    return [Mistake(int(wrong[i]), int(predicted[wrong[i]]), float(probabilities[i])) for i in order]


def draw_mistakes(loader: Loader, mistakes: Sequence[Mistake]) -> npt.NDArray[np.uint8]:
    """Draws each image over its true class and the class that it was taken for.

    Args:
        loader: the images.
        mistakes: those to draw, one or more.

    Returns:
        (H, W, 3) uint8, as wide for one mistake as for four, so that TensorBoard scales all alike.
    """
    from PIL import Image, ImageDraw, ImageOps

    rows = -(-len(mistakes) // _COLUMNS)
    width, height = _SIDE + _GAP, _SIDE + 3 * _LINE + _GAP
    sheet = Image.new("RGB", (_GAP + _COLUMNS * width, _HEAD + rows * height), "white")
    draw = ImageDraw.Draw(sheet)
    draw.text((_GAP, 5), "true class > predicted class, its probability", _QUIET, _font())
    for number, mistake in enumerate(mistakes):
        x, y = _GAP + number % _COLUMNS * width, _HEAD + number // _COLUMNS * height
        image = Image.fromarray(_pixels(loader.inputs[mistake.position : mistake.position + 1][0]))
        image = ImageOps.contain(image, (_SIDE, _SIDE))
        sheet.paste(image, (x + (_SIDE - image.width) // 2, y + (_SIDE - image.height) // 2))
        classes = loader.classes
        share = "> 99 %" if mistake.probability > 0.995 else f"{100 * mistake.probability:.0f} %"
        lines = (classes[loader.targets[mistake.position]], f"> {classes[mistake.predicted]}", share)
        for line, text in enumerate(lines):
            _write(draw, (x, y + _SIDE + 1 + line * _LINE), text, _QUIET if line == 2 else _INK)
    return np.asarray(sheet)


def _pixels(image: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Returns a normalised image, (C, H, W) float32, as (H, W, 3) uint8 from black to white."""
    values = np.moveaxis(image.astype(np.float64), 0, 2)
    values = (values - values.min()) / max(float(np.ptp(values)), 1e-12)
    return np.broadcast_to((values * 255).round().astype(np.uint8), (*values.shape[:2], 3)).copy()


def _write(draw: ImageDraw, place: tuple[int, int], text: str, colour: tuple[int, int, int]) -> None:
    """Writes a line of text, shortened to the width of a field."""
    font, text = _font(), " ".join(text.split())
    while font.getlength(text) > _SIDE:
        text = text.removesuffix("…")[:-1] + "…"
    draw.text(place, text, colour, font)


@functools.cache
def _font() -> FreeTypeFont:
    """Returns the font of all charts, which has more scripts than Pillow's own."""
    import matplotlib
    from PIL import ImageFont

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), 10)
