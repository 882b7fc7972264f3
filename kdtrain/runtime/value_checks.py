"""What is demanded of the numbers that a user gives, each in the words of an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kdtrain.runtime.limits import LARGEST_SEED, MOST_EPOCHS, MOST_IMAGES

Check = tuple[Callable[[Any], bool], str]

MOST_NUMBER = 1e6
"""Of a learning rate and of a temperature."""


def between(low: int, high: int) -> Check:
    """Returns what is demanded of a number that has two bounds, both allowed."""
    return lambda value: low <= value <= high, f"must be from {low:,} to {high:,}"


def positive(high: float) -> Check:
    """Returns what is demanded of a number above 0 that has an upper bound."""
    return lambda value: 0 < value <= high, f"must be above 0, and at most {high:,.0f}"


EPOCHS = between(1, MOST_EPOCHS)
IMAGES = between(1, MOST_IMAGES)
SEED = between(0, LARGEST_SEED)
