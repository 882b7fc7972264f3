"""Random changes of training images: those that leave their class what it is, and mixup.

Each works on a whole batch at once. What is drawn comes from the generator that it is given, which
a loader makes from seed, epoch and rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.augment_spec import parse_augment

Images = NDArray[np.float32]

Augmentation = Callable[[Images, np.random.Generator], Images]
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

    def __call__(self, images: Images, rng: np.random.Generator) -> Images:
        """Returns a shifted copy of ``images``."""
        return _windows(_framed(images, self.pixels, self.background), self.pixels, rng)


@dataclass(frozen=True)
class Crop:
    """Moves each image as ``Shift`` does; what comes in over the edge is the image, mirrored there.

    Attributes:
        pixels: the longest way, at least 1.
    """

    pixels: int

    def __call__(self, images: Images, rng: np.random.Generator) -> Images:
        """Returns a moved copy of ``images``."""
        margin = (self.pixels, self.pixels)
        return _windows(np.pad(images, ((0, 0), (0, 0), margin, margin), "reflect"), self.pixels, rng)


@dataclass(frozen=True)
class Flip:
    """Mirrors each image, left for right, with a probability of one half."""

    def __call__(self, images: Images, rng: np.random.Generator) -> Images:
        """Returns a copy of ``images``, about half of them mirrored."""
        result = images.copy()
        chosen = rng.random(len(images)) < 0.5
        result[chosen] = images[chosen, :, :, ::-1]
        return result


@dataclass(frozen=True)
class Rotate:
    """Turns each image about its centre, up to ``degrees`` either way, all angles equally likely.

    A pixel is the mean of the four that it comes from, weighted by distance along each axis
    (bilinear); beyond the edge there is background.

    Attributes:
        degrees: the largest angle, above 0.
        background: the value of a black pixel, per channel.
    """

    degrees: float
    background: tuple[float, ...]

    def __call__(self, images: Images, rng: np.random.Generator) -> Images:
        """Returns a turned copy of ``images``."""
        count, channels, height, width = images.shape
        angles = np.radians(rng.uniform(-self.degrees, self.degrees, (count, 1, 1)))
        rows = np.arange(height).reshape(1, -1, 1) - (height - 1) / 2
        columns = np.arange(width).reshape(1, 1, -1) - (width - 1) / 2
        # Where each pixel comes from, in an image with a frame of one pixel of background.
        down = np.cos(angles) * rows - np.sin(angles) * columns + (height + 1) / 2
        right = np.sin(angles) * rows + np.cos(angles) * columns + (width + 1) / 2
        down, right = down.clip(0, height + 1), right.clip(0, width + 1)
        top = np.minimum(down.astype(np.int64), height)
        left = np.minimum(right.astype(np.int64), width)
        below, beside = (down - top).astype(np.float32), (right - left).astype(np.float32)

        framed = _framed(images, 1, self.background)
        plane = (height + 2) * (width + 2)
        first = top * (width + 2) + left + np.arange(count).reshape(-1, 1, 1) * channels * plane
        corners = (
            (0, (1 - below) * (1 - beside)),
            (1, (1 - below) * beside),
            (width + 2, below * (1 - beside)),
            (width + 3, below * beside),
        )
        result = np.zeros(images.shape, np.float32)
        for channel in range(channels):
            for step, weight in corners:
                result[:, channel] += framed.ravel().take(first + (channel * plane + step)) * weight
        return result


@dataclass(frozen=True)
class Mixup:
    """Lays another image of the batch over each, as half-transparent as chance has it.

    Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), section 2; as in the authors'
    code, one share is drawn for a whole batch. The labels are mixed in the loss: see ``Batch``.

    Attributes:
        alpha: both parameters of the Beta distribution that the share is drawn from, above 0.
    """

    alpha: float

    def __call__(self, images: Images, rng: np.random.Generator) -> tuple[Images, float, NDArray[np.int64]]:
        """Returns mixed images, the share of its own that each keeps, and whose the rest is (N,)."""
        share, others = float(rng.beta(self.alpha, self.alpha)), rng.permutation(len(images))
        mixed = images * np.float32(share)
        mixed += images[others] * np.float32(1 - share)
        return mixed, share, others


def mixup(text: str) -> Mixup | None:
    """Returns the mixup of a setting that has been checked, or None if it has none."""
    return next((Mixup(alpha) for name, alpha in parse_augment(text) or () if name == "mixup"), None)


def augmentation(text: str, background: tuple[float, ...]) -> Augmentation | None:
    """Returns what a setting such as ``shift=2,flip`` stands for, but for mixup; None if that is nothing.

    Args:
        text: a setting that has been checked.
        background: the value of a black pixel, per channel.
    """
    makers: dict[str, Callable[[float], Augmentation]] = {
        "shift": lambda pixels: Shift(int(pixels), background),
        "crop": lambda pixels: Crop(int(pixels)),
        "flip": lambda _: Flip(),
        "rotate": lambda degrees: Rotate(degrees, background),
    }
    steps = [makers[name](number) for name, number in parse_augment(text) or () if name in makers]
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else partial(_in_turn, tuple(steps))


def _in_turn(steps: tuple[Augmentation, ...], images: Images, rng: np.random.Generator) -> Images:
    for step in steps:
        images = step(images, rng)
    return images


def _framed(images: Images, margin: int, background: tuple[float, ...]) -> Images:
    """Returns a copy with ``margin`` pixels of background on every side."""
    count, channels, height, width = images.shape
    framed = np.empty((count, channels, height + 2 * margin, width + 2 * margin), np.float32)
    framed[:] = np.array(background, np.float32).reshape(-1, 1, 1)
    framed[:, :, margin:-margin, margin:-margin] = images
    return framed


def _windows(framed: Images, margin: int, rng: np.random.Generator) -> Images:
    """Returns a window of each image that has a frame, as large as the image was, anywhere."""
    height, width = (side - 2 * margin for side in framed.shape[2:])
    windows = np.lib.stride_tricks.sliding_window_view(
        framed,
        (height, width),
        axis=(2, 3),  # type: ignore[call-overload]  # NumPy's stubs are wrong
    )
    count = len(framed)
    down, right = rng.integers(0, 2 * margin + 1, (2, count))
    return np.ascontiguousarray(windows[np.arange(count), :, down, right])
