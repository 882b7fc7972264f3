"""The syntax of ``--augment``, without NumPy, so that the command line can check it at once."""

from __future__ import annotations

import re

MIXES = ("mixup", "cutmix")
"""The augmentations that mix two images."""

AUGMENT_FORMS = (
    "shift=1 to 64 (pixels), crop=1 to 64 (pixels), scale=LOW..HIGH (shares of the area, up to 1), "
    "rotate=1 to 180 (degrees), flip, colour=STRENGTH (up to 1), erase=PROBABILITY (up to 1), mixup, cutmix, "
    "mixup=ALPHA or cutmix=ALPHA (up to 100)"
)

_LARGEST = {"shift": 64, "crop": 64, "rotate": 180, "colour": 1, "erase": 1, "mixup": 100, "cutmix": 100}
_WITHOUT = {"flip": (), "mixup": (1.0,), "cutmix": (1.0,)}
_WHOLE, _NUMBER = r"[0-9]{1,9}", r"[0-9]{1,9}(?:\.[0-9]{1,9})?"


def parse_augment(text: str) -> list[tuple[str, tuple[float, ...]]] | None:
    """Parses the value of ``--augment``.

    Args:
        text: ``none``, or NAME or NAME=NUMBER several times, with commas between them; ``scale`` has two
            numbers, LOW..HIGH.

    Returns:
        Each name with its parameters, in the given order (``flip`` has none); None if the text is invalid.
    """
    if text == "none":
        return []
    parameters: dict[str, tuple[float, ...]] = {}
    for part in text.split(","):
        name, equals, number = part.partition("=")
        values = _parameters(name, number) if equals else _WITHOUT.get(name)
        if name in parameters or values is None:
            return None
        parameters[name] = values
    return list(parameters.items())


def mixes(text: str) -> bool:
    """Returns whether a checked setting mixes images."""
    return any(name in MIXES for name, _ in parse_augment(text) or ())


def _parameters(name: str, text: str) -> tuple[float, ...] | None:
    """Returns valid parameters, else None; pixels and degrees are whole numbers."""
    if name == "scale":
        low, dots, high = text.partition("..")
        if not (dots and re.fullmatch(_NUMBER, low) and re.fullmatch(_NUMBER, high)):
            return None
        return (float(low), float(high)) if 0 < float(low) <= float(high) <= 1 else None
    form = _WHOLE if name in ("shift", "crop", "rotate") else _NUMBER
    if name not in _LARGEST or not re.fullmatch(form, text):
        return None
    return (float(text),) if 0 < float(text) <= _LARGEST[name] else None
