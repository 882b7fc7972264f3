"""The number of epochs for a number of training images."""

from __future__ import annotations

_PASSES = {"teacher": 440_000, "student": 3_300_000}
"""Images that a network is shown, repetitions counted: 8 and 60 epochs of MNIST's 55,000."""

_LIMITS = {"teacher": (5, 100), "student": (20, 200)}
"""Fewest and most epochs."""


def epochs_for_size(network: str, images: int) -> int:
    """Returns the number of epochs for a network that neither a setting nor a recipe gives one.

    The number of steps makes a network good more than the number of epochs does, so few images are shown
    more often: a teacher sees 440,000 images, a student 3,300,000, as many as in 8 and in 60 epochs of
    MNIST. A student is small and copies a function that is given at every image, so that it needs, and
    can use, far more steps than its teacher.

    The limits keep both ends sensible. A teacher that sees a few hundred images more than a hundred times
    learns them by heart. With hundreds of thousands of images, each has to be seen some times all the same,
    so that the learning rate can rise and fall.

    Args:
        network: ``teacher`` or ``student``.
        images: number of training images, without those held out.
    """
    fewest, most = _LIMITS[network]
    return min(max(round(_PASSES[network] / images), fewest), most)
