"""The number of epochs for a number of training images."""

from __future__ import annotations

import math

_PASSES = {"teacher": 1_100_000, "student": 3_300_000}
"""Images that a network is shown, repetitions counted: 20 and 60 epochs of 55,000 images."""

_LIMITS = {"teacher": (5, 300), "student": (20, 200)}
"""Fewest and most epochs."""

_FEW = 2400
"""With ``--labels``: epochs of either network times the square root of the number of labelled images."""


def epochs_for_size(network: str, images: int, *, few: bool = False) -> int:
    """Returns the number of epochs for a network that neither a setting nor a recipe gives one.

    The number of steps makes a network good more than the number of epochs does, so few images are shown
    more often: a teacher sees 1,100,000 images, a student 3,300,000, as many as in 20 and in 60 epochs of
    55,000 images. A student is small and copies a function that is given at every image, so that it needs,
    and can use, more steps than its teacher. Decision 0040 has the figures for teachers.

    The limits keep both ends sensible. With hundreds of thousands of images, each has to be seen some times
    all the same, so that the learning rate can rise and fall. A few hundred images are learned by heart.

    With ``--labels`` the number falls with the square root of the number of labelled images: 400 of them take
    120 epochs, 4,000 take 38. A student's batches hold images without labels too, so an epoch
    shows several times as many. Decision 0050 has the figures.

    Args:
        network: ``teacher`` or ``student``.
        images: number of training images with labels, without those held out.
        few: the other images have no labels (``--labels``).
    """
    fewest, most = _LIMITS[network]
    epochs = _FEW / math.sqrt(images) if few else _PASSES[network] / images
    return min(max(round(epochs), fewest), most)
