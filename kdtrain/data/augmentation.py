"""Random changes of training images: those that keep the class, and mixup and CutMix, which mix two images.

Each works on a whole batch. What it draws for an image depends on the image and its variant alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from kdtrain.data.augment_spec import MIXES, parse_augment
from kdtrain.data.dataset import Normalization
from kdtrain.data.draws import Draws

Images = NDArray[np.float32]

Augmentation = Callable[[Images, Draws], Images]
"""Maps normalised images, (N, C, H, W) float32, and their random numbers to new images of the same shape."""

Scale = tuple[float, float]
SAME_SIZE: Scale = (1.0, 1.0)

_TO_YIQ = np.array([[0.299, 0.587, 0.114], [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]])


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
    """Mirrors every other variant of an image, left to right.

    An image and its mirror image follow one another, so that each is seen equally often (Jordan, "94% on
    CIFAR-10 in 3.29 Seconds on a Single GPU", 2024, section 3.6: alternating flip).

    Attributes:
        fixed: variant 0 is the image itself. Otherwise one half of the images begin with the mirror image.
    """

    fixed: bool = False

    def __call__(self, images: Images, draws: Draws) -> Images:
        """Returns a copy of ``images``, (N, C, H, W) float32, about half of them mirrored."""
        result = images.copy()
        first = (
            0 if self.fixed else dataclasses.replace(draws, variants=draws.variants * 0).integers("flip", 2)
        )
        chosen = (draws.variants + first) % 2 == 1
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
        count, _, height, width = images.shape
        turns = 2 * draws.uniform("rotate") - 1
        angles = np.radians(self.degrees * turns).reshape(count, 1, 1)
        rows = np.arange(height).reshape(1, -1, 1) - (height - 1) / 2
        columns = np.arange(width).reshape(1, 1, -1) - (width - 1) / 2
        # The source of each pixel, in an image with a frame of one pixel of background.
        down = np.cos(angles) * rows - np.sin(angles) * columns + (height + 1) / 2
        right = np.sin(angles) * rows + np.cos(angles) * columns + (width + 1) / 2
        return _interpolated(_framed(images, (1, 1), self.background), down, right)


@dataclass(frozen=True)
class Zoom:
    """Takes a random part of each image, of the image's proportions, and resizes it to the whole size.

    After Szegedy et al., "Going Deeper with Convolutions" (2015), section 6, where parts also have other
    proportions.

    Attributes:
        low: the smallest share of the area, above 0.
        high: the largest share; all shares between them are equally likely, and so are the places.
    """

    low: float
    high: float

    def __call__(self, images: Images, draws: Draws) -> Images:
        """Returns the parts of ``images``, (N, C, H, W) float32, by bilinear interpolation."""
        side = np.sqrt(self.low + (self.high - self.low) * draws.uniform("scale"))
        places = []
        for way, length in zip(("down", "right"), images.shape[2:], strict=True):
            start = draws.uniform(f"scale {way}") * (1 - side) * length
            place = start[:, None] + (np.arange(length) + 0.5) * side[:, None] - 0.5
            places.append(place.clip(0, length - 1) + 1)  # the frame below
        framed = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)), "edge")
        down, right = np.broadcast_arrays(places[0][:, :, None], places[1][:, None, :])
        return _interpolated(framed, down, right)


@dataclass(frozen=True)
class Colour:
    """Changes brightness, contrast and saturation of each image by a factor each, and its hue by an angle.

    The factors are drawn from 1 - strength to 1 + strength, the angle up to a fourth of the strength of a
    full turn either way, as Chen et al. do ("A Simple Framework for Contrastive Learning of Visual
    Representations", 2020, appendix A). Hue and saturation turn and stretch the plane of colours in YIQ. Grey
    images change brightness and contrast alone. Pixels stay between black and white.

    Attributes:
        strength: above 0 to 1.
        normalization: that of the images.
    """

    strength: float
    normalization: Normalization

    def __call__(self, images: Images, draws: Draws) -> Images:
        """Returns a changed copy of ``images``, (N, C, H, W) float32."""
        count, channels, *size = images.shape
        mean, std = (
            np.array(values, np.float32).reshape(-1, 1)
            for values in (self.normalization.mean, self.normalization.std)
        )
        pixels = images.reshape(count, channels, -1) * std + mean
        luma = _TO_YIQ[:1] if channels == 3 else np.full((1, channels), 1 / channels)
        names = ("brightness", "contrast", "saturation")
        factors = {name: 1 + self.strength * (2 * draws.uniform(name) - 1) for name in names}
        mixing = np.broadcast_to(np.eye(channels), (count, channels, channels))
        if channels == 3:
            angle = np.pi / 2 * self.strength * (2 * draws.uniform("hue") - 1)
            plane = np.zeros((count, 3, 3))
            plane[:, 0, 0] = 1
            plane[:, 1, 1] = plane[:, 2, 2] = factors["saturation"] * np.cos(angle)
            plane[:, 1, 2] = -factors["saturation"] * np.sin(angle)
            plane[:, 2, 1] = -plane[:, 1, 2]
            mixing = np.linalg.inv(_TO_YIQ) @ plane @ _TO_YIQ
        brightness, contrast = (factors[name].reshape(-1, 1, 1) for name in names[:2])
        grey = brightness * (luma @ pixels).mean(axis=2, keepdims=True)
        changed = (contrast * brightness * mixing).astype(np.float32) @ pixels
        changed += (grey * (1 - contrast)).astype(np.float32)
        result: Images = (changed.clip(0, 1) - mean) / std
        return result.reshape(count, channels, *size)


@dataclass(frozen=True)
class Erase:
    """Fills a random rectangle of some images with the mean of the training images, which is 0.

    The rectangle has 2 to 33 % of the area, and sides of a ratio from 0.3 to 3.3 (Zhong et al., "Random
    Erasing Data Augmentation", 2020, algorithm 1). It lies wholly in the image, or is cut off at its edge.

    Attributes:
        probability: the share of images that have one, above 0 to 1.
    """

    probability: float

    def __call__(self, images: Images, draws: Draws) -> Images:
        """Returns a copy of ``images``, (N, C, H, W) float32, some with a rectangle of zeros."""
        area = 0.02 + 0.31 * draws.uniform("erase area")
        ratio = np.exp(np.log(0.3) + (np.log(3.3) - np.log(0.3)) * draws.uniform("erase ratio"))
        sides = (np.sqrt(area * ratio), np.sqrt(area / ratio))
        inside = _rectangles(images.shape[2:], sides, draws, "erase ")
        inside &= (draws.uniform("erase") < self.probability)[:, None, None]
        return images * ~inside[:, None]


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
        side = np.sqrt(1 - share)
        rectangles = _rectangles(images.shape[2:], (side, side), draws) & cut[:, None, None]
        own = (~rectangles * np.where(cut, 1.0, share)[:, None, None]).astype(np.float32)
        mixed: Images = images * own[:, None] + partners * (1 - own)[:, None]
        return mixed, own.mean(axis=(1, 2), dtype=np.float64).astype(np.float32)

    def _cut(self, draws: Draws) -> NDArray[np.bool_]:
        """Returns (B,) bool: whether an image gets CutMix rather than mixup."""
        if self.mixup is None or self.cutmix is None:
            return np.full(len(draws.images), self.cutmix is not None)
        return draws.uniform("mixup or cutmix") < 0.5


def augmentation(
    text: str, normalization: Normalization, scale: Scale = SAME_SIZE, *, fixed: bool = False
) -> Augmentation | None:
    """Returns the augmentation in a setting such as ``shift=2,flip``; None if there is none.

    mixup and cutmix are no part of it: see ``mixing``.

    Args:
        text: a checked setting.
        normalization: that of the images.
        scale: the pixels of an image's height and width for each of those that the setting counts.
        fixed: variants are fixed, and variant 0 is the image itself.
    """
    background = normalization.background
    makers: dict[str, Callable[..., Augmentation]] = {
        "shift": lambda pixels: Shift(int(pixels), background, scale),
        "crop": lambda pixels: Crop(int(pixels), scale),
        "scale": Zoom,
        "flip": lambda: Flip(fixed),
        "rotate": lambda degrees: Rotate(degrees, background),
        "colour": lambda strength: Colour(strength, normalization),
        "erase": Erase,
    }
    steps = [makers[name](*numbers) for name, numbers in parse_augment(text) or () if name in makers]
    if not steps:
        return None
    return steps[0] if len(steps) == 1 else partial(_chain, tuple(steps))


def mixing(text: str) -> Mixing | None:
    """Returns the mixing in a checked setting such as ``flip,mixup=0.2``, or None if there is none."""
    alphas = {name: numbers[0] for name, numbers in parse_augment(text) or () if name in MIXES}
    result = Mixing(alphas.get("mixup"), alphas.get("cutmix"))
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


def _interpolated(framed: Images, down: NDArray[np.float64], right: NDArray[np.float64]) -> Images:
    """Returns images of pixels that are interpolated between four of a framed image.

    Args:
        framed: (N, C, H + 2, W + 2) float32.
        down: (N, H, W), the row of each pixel in its framed image.
        right: (N, H, W), the column.

    Returns:
        (N, C, H, W) float32.
    """
    count, channels = framed.shape[:2]
    height, width = framed.shape[2] - 2, framed.shape[3] - 2
    down, right = down.clip(0, height + 1), right.clip(0, width + 1)
    top = np.minimum(down.astype(np.int64), height)
    left = np.minimum(right.astype(np.int64), width)
    below, beside = (down - top).astype(np.float32), (right - left).astype(np.float32)
    plane = (height + 2) * (width + 2)
    first = top * (width + 2) + left + np.arange(count).reshape(-1, 1, 1) * channels * plane
    corners = (
        (0, (1 - below) * (1 - beside)),
        (1, (1 - below) * beside),
        (width + 2, below * (1 - beside)),
        (width + 3, below * beside),
    )
    result = np.zeros((count, channels, height, width), np.float32)
    for channel in range(channels):
        for step, weight in corners:
            result[:, channel] += framed.ravel().take(first + (channel * plane + step)) * weight
    return result


def _rectangles(
    size: tuple[int, ...],
    sides: tuple[NDArray[np.float64], NDArray[np.float64]],
    draws: Draws,
    purpose: str = "",
) -> NDArray[np.bool_]:
    """Returns (B, H, W) bool: a rectangle at a random place, cut off at the edges of the image.

    Args:
        size: height and width of the images.
        sides: height and width of the rectangles, (B,) each, as fractions of the image's.
        draws: the images' random numbers.
        purpose: begins the names of the draws.
    """
    inside: list[NDArray[np.bool_]] = []
    for name, length, side in zip(("down", "right"), size, sides, strict=True):
        half = side * length / 2
        centre = draws.uniform(f"{purpose}centre {name}") * length
        pixels = np.arange(length)[None, :] + 0.5
        inside.append((pixels > (centre - half)[:, None]) & (pixels < (centre + half)[:, None]))
    rows, columns = inside
    rectangles: NDArray[np.bool_] = rows[:, :, None] & columns[:, None, :]
    return rectangles
