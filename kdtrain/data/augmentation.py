"""Random changes of training images: those that keep the class, and mixup and CutMix, which mix two images.

Each works on a whole batch. What it draws for an image depends on the image and its variant alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from kdtrain.data.augment_spec import parse_augment
from kdtrain.data.draws import Draws

Images = NDArray[np.float32]

Augmentation = Callable[[Images, Draws], Images]
"""Maps normalised images, (N, C, H, W) float32, and their random numbers to new images of the same shape."""

Scale = tuple[float, float]
SAME_SIZE: Scale = (1.0, 1.0)


@dataclass(frozen=True)
class Shift:
    """Moves each image by a random number of whole pixels along each axis, and fills with background.

    Attributes:
        pixels: the largest distance, at least 1; all distances up to it are equally likely.
        background: the value of a black pixel, per channel.
        scale: the pixels of an image's height and width for each of those that distances count.
    """

    pixels: int
    background: tuple[float, ...]
    scale: Scale = SAME_SIZE

    def __call__(self, images: Images, draws: Draws) -> Images:
        """Returns a shifted copy of ``images``, (N, C, H, W) float32."""
        margins = _margins(self.pixels, self.scale)
        framed = _framed(images, margins, self.background)
        return _windows(framed, margins, self.pixels, self.scale, draws, "shift")


@dataclass(frozen=True)
class Crop:
    """Moves each image as ``Shift`` does, and fills with the image mirrored at its edge.

    Attributes:
        pixels: the largest distance, at least 1.
        scale: as that of ``Shift``.
    """

    pixels: int
    scale: Scale = SAME_SIZE

    def __call__(self, images: Images, draws: Draws) -> Images:
        """Returns a moved copy of ``images``, (N, C, H, W) float32."""
        margins = down, right = _margins(self.pixels, self.scale)
        framed = np.pad(images, ((0, 0), (0, 0), (down, down), (right, right)), "reflect")
        return _windows(framed, margins, self.pixels, self.scale, draws, "crop")


@dataclass(frozen=True)
class Flip:
    """Mirrors each image, left to right, with a probability of one half."""

    def __call__(self, images: Images, draws: Draws) -> Images:
        """Returns a copy of ``images``, (N, C, H, W) float32, about half of them mirrored."""
        result = images.copy()
        chosen = draws.uniform("flip") < 0.5
        result[chosen] = images[chosen, :, :, ::-1]
        return result


@dataclass(frozen=True)
class Rotate:
    """Rotates each image about its centre, with bilinear interpolation, and fills with background.

    Attributes:
        degrees: the largest angle, above 0; all angles up to it, either way, are equally likely.
        background: the value of a black pixel, per channel.
    """

    degrees: float
    background: tuple[float, ...]

    def __call__(self, images: Images, draws: Draws) -> Images:
        """Returns a rotated copy of ``images``, (N, C, H, W) float32."""
        count, channels, height, width = images.shape
        turns = 2 * draws.uniform("rotate") - 1
        angles = np.radians(self.degrees * turns).reshape(count, 1, 1)
        rows = np.arange(height).reshape(1, -1, 1) - (height - 1) / 2
        columns = np.arange(width).reshape(1, 1, -1) - (width - 1) / 2
        # The source of each pixel, in an image with a frame of one pixel of background.
        down = np.cos(angles) * rows - np.sin(angles) * columns + (height + 1) / 2
        right = np.sin(angles) * rows + np.cos(angles) * columns + (width + 1) / 2
        down, right = down.clip(0, height + 1), right.clip(0, width + 1)
        top = np.minimum(down.astype(np.int64), height)
        left = np.minimum(right.astype(np.int64), width)
        below, beside = (down - top).astype(np.float32), (right - left).astype(np.float32)

        framed = _framed(images, (1, 1), self.background)
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
class Mixing:
    """Mixes each image with a partner: as a whole (mixup), or a rectangle of it (CutMix).

    Zhang et al., "mixup: Beyond Empirical Risk Minimization" (2018), section 2; Yun et al., "CutMix:
    Regularization Strategy to Train Strong Classifiers with Localizable Features" (2019), section 3.1. With
    both, one of them is drawn for each image. The share of the image itself, lambda, is drawn from a Beta
    distribution, and replaced by 1 - lambda where that is larger, as Beyer et al. do in "Knowledge
    distillation: A good teacher is patient and consistent" (2022): so an image is mostly itself. A
    rectangle of CutMix has whole pixels: its area may be a little more than one half, and the share that is
    returned is that of the pixels.

    Attributes:
        mixup: both parameters of the Beta distribution of mixup's lambda, above 0; None without mixup.
        cutmix: the same for CutMix.
    """

    mixup: float | None = None
    cutmix: float | None = None

    def partners(
        self, draws: Draws, positions: NDArray[np.int64], count: int, labelled: int | None = None
    ) -> NDArray[np.int64]:
        """Returns (B,) int64, the position of each image's partner: any of the others of its kind.

        Args:
            draws: the images' random numbers.
            positions: (B,) int64, the position of each image among the training images.
            count: the number of training images.
            labelled: the number of those with labels, which come first; all by default.
        """
        if labelled is None:
            step = 1 + draws.integers("partner", max(count - 1, 1))
            return (positions + step) % count
        has_label = positions < labelled
        first, number = np.where(has_label, 0, labelled), np.where(has_label, labelled, count - labelled)
        step = 1 + (draws.uniform("partner") * np.maximum(number - 1, 1)).astype(np.int64)
        partners: NDArray[np.int64] = first + (positions - first + step) % number
        return partners

    def __call__(self, images: Images, partners: Images, draws: Draws) -> tuple[Images, NDArray[np.float32]]:
        """Returns the mixed images, (B, C, H, W) float32, and the share of each image itself, (B,) float32.

        Args:
            images: (B, C, H, W) float32.
            partners: the images to mix in, of the same shape.
            draws: the images' random numbers.
        """
        share = draws.uniform("share")
        cut = self._cut(draws)
        alpha = np.where(cut, self.cutmix or 1.0, self.mixup or 1.0)
        share = betaincinv(alpha, alpha, share)
        share = np.maximum(share, 1 - share)
        rectangles = _rectangles(images.shape[2:], share, draws) & cut[:, None, None]
        own = (~rectangles * np.where(cut, 1.0, share)[:, None, None]).astype(np.float32)
        mixed: Images = images * own[:, None] + partners * (1 - own)[:, None]
        return mixed, own.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)

    def _cut(self, draws: Draws) -> NDArray[np.bool_]:
        """Returns (B,) bool: whether an image gets CutMix rather than mixup."""
        if self.mixup is None or self.cutmix is None:
            return np.full(len(draws.images), self.cutmix is not None)
        return draws.uniform("mixup or cutmix") < 0.5


def augmentation(text: str, background: tuple[float, ...], scale: Scale = SAME_SIZE) -> Augmentation | None:
    """Returns the augmentation in a setting such as ``shift=2,flip``; None if there is none.

    mixup and cutmix are no part of it: see ``mixing``.

    Args:
        text: a checked setting.
        background: the value of a black pixel, per channel.
        scale: the pixels of an image's height and width for each of those that the setting counts.
    """
    makers: dict[str, Callable[[float], Augmentation]] = {
        "shift": lambda pixels: Shift(int(pixels), background, scale),
        "crop": lambda pixels: Crop(int(pixels), scale),
        "flip": lambda _: Flip(),
        "rotate": lambda degrees: Rotate(degrees, background),
    }
    steps = [makers[name](number) for name, number in parse_augment(text) or () if name in makers]
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else partial(_chain, tuple(steps))


def mixing(text: str) -> Mixing | None:
    """Returns the mixing in a checked setting such as ``flip,mixup=0.2``, or None if there is none."""
    parameters = dict(parse_augment(text) or ())
    result = Mixing(parameters.get("mixup"), parameters.get("cutmix"))
    return None if result == Mixing() else result


def _chain(steps: tuple[Augmentation, ...], images: Images, draws: Draws) -> Images:
    for step in steps:
        images = step(images, draws)
    return images


def _margins(pixels: int, scale: Scale) -> tuple[int, int]:
    """Returns the frame that moves of up to so many pixels need, in the pixels of an image's own size."""
    return round(pixels * scale[0]), round(pixels * scale[1])


def _framed(images: Images, margins: tuple[int, int], background: tuple[float, ...]) -> Images:
    """Returns a copy with a frame of background: its height above and below, and its width beside."""
    count, channels, height, width = images.shape
    down, right = margins
    framed = np.empty((count, channels, height + 2 * down, width + 2 * right), np.float32)
    framed[:] = np.array(background, np.float32).reshape(-1, 1, 1)
    framed[:, :, down : down + height, right : right + width] = images
    return framed


def _windows(
    framed: Images, margins: tuple[int, int], pixels: int, scale: Scale, draws: Draws, purpose: str
) -> Images:
    """Returns a random window of each framed image, of the size without the frame."""
    size = framed.shape[2] - 2 * margins[0], framed.shape[3] - 2 * margins[1]
    windows = np.lib.stride_tricks.sliding_window_view(
        framed,
        size,
        axis=(2, 3),  # type: ignore[call-overload]  # NumPy's stubs are wrong
    )
    down, right = (
        margin
        + np.rint((draws.integers(f"{purpose} {way}", 2 * pixels + 1) - pixels) * factor).astype(np.int64)
        for way, margin, factor in zip(("down", "right"), margins, scale, strict=True)
    )
    return np.ascontiguousarray(windows[np.arange(len(framed)), :, down, right])


def _rectangles(size: tuple[int, ...], share: NDArray[np.float64], draws: Draws) -> NDArray[np.bool_]:
    """Returns (B, H, W) bool: a rectangle of the area 1 - share, cut off at the edges of the image."""
    inside: list[NDArray[np.bool_]] = []
    for name, length in zip(("down", "right"), size, strict=True):
        half = np.sqrt(1 - share) * length / 2
        centre = draws.uniform(f"centre {name}") * length
        pixels = np.arange(length)[None, :] + 0.5
        inside.append((pixels > (centre - half)[:, None]) & (pixels < (centre + half)[:, None]))
    rows, columns = inside
    rectangles: NDArray[np.bool_] = rows[:, :, None] & columns[:, None, :]
    return rectangles
