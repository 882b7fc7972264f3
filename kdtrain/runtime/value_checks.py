"""Checks of numbers in flags and settings, each with the text of its error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdtrain.runtime.limits import LARGEST_SEED, MOST_EPOCHS, MOST_IMAGES

Check = tuple[Callable[[Any], bool], str]
"""A predicate, and what an error says that the value must be."""

MOST_NUMBER = 1e6
"""The largest learning rate and temperature."""


def between(low: int, high: int) -> Check:
    """Returns the check of a number from ``low`` to ``high``, both included."""
    return lambda value: low <= value <= high, f"must be from {low:,} to {high:,}"


def positive(high: float) -> Check:
    """Returns the check of a number above 0 and up to ``high``."""
    return lambda value: 0 < value <= high, f"must be above 0, and at most {high:,.0f}"


EPOCHS = between(1, MOST_EPOCHS)
IMAGES = between(1, MOST_IMAGES)
SEED = between(0, LARGEST_SEED)
SHARE: Check = (lambda value: 0 < value < 1, "must be above 0 and below 1")
