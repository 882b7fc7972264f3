"""mixup and CutMix: training images that are made of two."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv

from kdtrain.data.augment_spec import parse_augment
from kdtrain.data.augmentation import Images
from kdtrain.data.draws import Draws


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


def mixing(text: str) -> Mixing | None:
    """Returns the mixing in a checked setting such as ``flip,mixup=0.2``, or None if there is none."""
    parameters = dict(parse_augment(text) or ())
    result = Mixing(parameters.get("mixup"), parameters.get("cutmix"))
    return None if result == Mixing() else result


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
