"""The variants of training images: which there are, and which one an epoch takes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.augment_spec import parse_augment
from kdtrain.data.augmentation import Augmentation, Images, Mixing, augmentation, mixing
from kdtrain.data.dataset import LazyImages, Normalization
from kdtrain.data.draws import Draws
from kdtrain.data.images.resize import InputForm

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class MixedLabels:
    """What was mixed into the images of a batch.

    Attributes:
        partners: (B,) int64, positions of the images that were mixed in.
        share: (B,) float32, the share of the images themselves, above 0 to 1.
    """

    partners: Positions
    share: NDArray[np.float32]


@dataclass(frozen=True)
class Views:
    """Fixed variants of each training image, or new ones in each epoch.

    A variant is drawn from the seed, the image's number and the variant's number, and from nothing else. So
    a teacher runs over each once, and every student, process and epoch gets the same one. Variant 0 is the
    image itself; with ``mixing`` it is the image itself, mixed.

    Attributes:
        augment: the change of an image; None if images are only mixed.
        mixing: mixes images; None does not.
        count: the number of variants of each image; 0: the number of the epoch is that of the variant.
        seed: the seed.
        text: names augmentation and mixing in the key of a cache.
    """

    augment: Augmentation | None
    mixing: Mixing | None
    count: int
    seed: int
    text: str

    def numbers(self, images: Positions, epoch: int | Positions) -> Positions:
        """Returns (B,) int64: the variant of each image in an epoch.

        Fixed variants follow one another, from one that is drawn for each image: after ``count`` epochs
        an image has had each of them once.

        Args:
            images: (B,) int64, the images' numbers.
            epoch: the number of the epoch, at least 1; or (B,) int64, how often each image has been drawn.
        """
        if self.count == 0:
            return np.broadcast_to(np.asarray(epoch, np.int64), images.shape).copy()
        first = Draws(self.seed, images, np.zeros_like(images)).integers("first variant", self.count)
        return (first + epoch - 1) % self.count

    def describe(self, variant: int) -> str:
        """Returns a text that is the same for the same variant of the same images."""
        if variant == 0 and self.mixing is None:
            return ""
        return f"{self.text} {self.seed} {variant}"

    def in_form(self, own: InputForm, form: InputForm) -> Views:
        """Returns the same views for a network of another input size, of the same parts of the pictures.

        Args:
            own: the form of the images that the views are counted for.
            form: the form of the images that they are wanted of.
        """
        scale = (form.shape[1] / own.shape[1], form.shape[2] / own.shape[2])
        augment = augmentation(self.text, form.normalization, scale, fixed=self.count > 0)
        return dataclasses.replace(self, augment=augment)

    def apply(
        self,
        inputs: Images | LazyImages,
        numbers: Positions,
        positions: Positions,
        variants: Positions,
        labelled: int | None = None,
    ) -> tuple[Images, MixedLabels | None]:
        """Returns the variants of some images.

        Labelled images are mixed with labelled ones, unlabelled with unlabelled.

        Args:
            inputs: all N training images, (N, C, H, W) float32, normalised.
            numbers: (N,) int64, the number of each of them.
            positions: (B,) int64, the positions of the images in ``inputs``.
            variants: (B,) int64, the variant of each.
            labelled: the number of images with labels, which come first; all by default.

        Returns:
            (B, C, H, W) float32, an array of their own; and what was mixed in.
        """
        images = self._changed(inputs, numbers, positions, variants)
        if self.mixing is None:
            return images, None
        draws = Draws(self.seed, numbers[positions], variants)
        partners = self.mixing.partners(draws, positions, len(numbers), labelled)
        mixed, share = self.mixing(images, self._changed(inputs, numbers, partners, variants), draws)
        return mixed, MixedLabels(partners, share)

    def _changed(
        self, inputs: Images | LazyImages, numbers: Positions, positions: Positions, variants: Positions
    ) -> Images:
        images = inputs[positions]
        if self.augment is None:
            return images
        changed = np.flatnonzero(variants)
        if len(changed) == len(images):
            return self.augment(images, Draws(self.seed, numbers[positions], variants))
        if len(changed):
            draws = Draws(self.seed, numbers[positions[changed]], variants[changed])
            images[changed] = self.augment(images[changed], draws)
        return images


def views(text: str, normalization: Normalization, count: int, seed: int) -> Views | None:
    """Returns the variants that a setting such as ``shift=2,mixup`` asks for; None for ``none``.

    Args:
        text: a checked value of ``--augment``.
        normalization: that of the images.
        count: the number of variants; 0 for new ones in each epoch.
        seed: their seed.
    """
    if not parse_augment(text):
        return None
    return Views(augmentation(text, normalization, fixed=count > 0), mixing(text), count, seed, text)
