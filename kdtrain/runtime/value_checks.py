"""Checks of numbers in flags and settings, each with the text of its error."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeVar

from kdtrain.errors import UsageError, clipped
from kdtrain.runtime.limits import LARGEST_SEED, MOST_EPOCHS, MOST_IMAGES

Check = tuple[Callable[[Any], bool], str]
"""A predicate, and what an error says that the value must be."""

Number = TypeVar("Number", int, float)

_NAMES = {int: "whole number", float: "number"}

MOST_NUMBER = 1e6
"""The largest learning rate and temperature."""

DEFAULT_TEMPERATURE = 4.0
"""Temperature of a distillation, and of softened probabilities where a model's card has none."""


def between(low: int, high: int) -> Check:
    """Returns the check of a number from ``low`` to ``high``, both included."""
    return lambda value: low <= value <= high, f"must be from {low:,} to {high:,}"


def above_0(high: float) -> Check:
    """Returns the check of a number above 0 and up to ``high``."""
    return lambda value: 0 < value <= high, f"must be above 0, and at most {high:,.0f}"


def check_value(flag: str, value: Any, check: Check, kind: type = int) -> None:
    """Checks a number.

    Args:
        flag: the flag, for an error to begin with.
        value: its value, which Python code may have given.
        check: what it must be.
        kind: int for a whole number, float for any.

    Raises:
        UsageError: the value is no number of this kind, or fails the check.
    """
    is_allowed, demand = check
    if isinstance(value, bool) or not isinstance(value, (int, kind)):
        raise UsageError(f"{flag} is {clipped(value, repr)}: it must be a {_NAMES[kind]}.")
    if not is_allowed(value):
        raise UsageError(f"{flag} is {clipped(value)}: it {demand}.")


def positive(name: str, value: float) -> float:
    """Returns an argument of a callback, which must be above 0 and finite.

    Args:
        name: the argument, for an error to begin with.
        value: its value.

    Raises:
        UsageError: the value is 0 or less, infinite or NaN.
    """
    if not 0.0 < value < math.inf:
        raise UsageError(f"{name}={value}: it must be above 0, and finite.")
    return value


def at_least(name: str, value: Number, low: Number) -> Number:
    """Returns an argument of a callback, which must be finite and not below a limit.

    Args:
        name: the argument, for an error to begin with.
        value: its value.
        low: the limit.

    Raises:
        UsageError: the value is below the limit, infinite or NaN.
    """
    if not low <= value < math.inf:
        raise UsageError(f"{name}={value}: it must be at least {low}.")
    return value


DEVICES = ("auto", "cpu", "cuda")
"""Values of --device."""

EPOCHS = between(1, MOST_EPOCHS)
IMAGES = between(1, MOST_IMAGES)
SEED = between(0, LARGEST_SEED)
SHARE: Check = (lambda value: 0 < value <= 0.95, "must be above 0 and at most 0.95")  # 0.95: 20 times a batch


def channel_values(text: str) -> tuple[float, ...]:
    """Returns the numbers of a text such as ``0.485,0.456,0.406``; NaN if it holds none or too many."""
    try:
        numbers = tuple(map(float, text.split(",")))
    except ValueError:
        return (math.nan,)
    return numbers if len(numbers) in (1, 3) else (math.nan,)


MEANS: Check = (
    lambda value: all(0.0 <= number <= 1.0 for number in channel_values(value)),
    "must be one number for all channels or one for each, from 0 to 1, such as 0.5 or 0.485,0.456,0.406",
)
STDS: Check = (
    lambda value: all(0.0 < number <= 1.0 for number in channel_values(value)),
    "must be one number for all channels or one for each, above 0 and at most 1, such as 0.5 or "
    "0.229,0.224,0.225",
)
