"""Random changes of training images that leave their class what it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Augmentation = Callable[[NDArray[np.float32], np.random.Generator], NDArray[np.float32]]
"""Takes normalised images (N, C, H, W) and returns new ones of the same shape."""


@dataclass(frozen=True)
class Shift:
    """Moves each image by whole pixels, up to ``pixels`` of them along either axis.

    All distances are equally likely. What comes in over the edge is background.

    Attributes:
        pixels: the longest way, at least 1.
        background: the value of a black pixel, per channel.
    """

    pixels: int
    background: tuple[float, ...]

    def __call__(self, images: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
        """Returns a shifted copy of ``images``."""
        count, channels, height, width = images.shape
        margin = self.pixels
        padded = np.empty((count, channels, height + 2 * margin, width + 2 * margin), np.float32)
        padded[:] = np.array(self.background, np.float32).reshape(-1, 1, 1)
        padded[:, :, margin:-margin, margin:-margin] = images
        windows = np.lib.stride_tricks.sliding_window_view(
            padded,
            (height, width),
            axis=(2, 3),  # type: ignore[call-overload]  # NumPy's stubs are wrong
        )
        down, right = rng.integers(0, 2 * margin + 1, (2, count))
        return np.ascontiguousarray(windows[np.arange(count), :, down, right])


def augmentation(text: str, background: tuple[float, ...]) -> Augmentation | None:
    """Returns what ``none`` or ``shift=PIXELS`` stands for.

    Args:
        text: a setting that has been checked.
        background: the value of a black pixel, per channel.
    """
    if text == "none":
        return None
    return Shift(int(text.removeprefix("shift=")), background)
