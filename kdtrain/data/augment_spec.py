"""The syntax of ``--augment``, without NumPy, so that the command line can check it at once."""

from __future__ import annotations

import re

LARGEST = {"shift": 64, "crop": 64, "rotate": 180, "mixup": 100, "cutmix": 100}
"""The largest parameter of each augmentation that has one: pixels, pixels, degrees, and alpha for both."""

MIXES = ("mixup", "cutmix")
"""The augmentations that mix two images."""

AUGMENT_FORMS = (
    "shift=1 to 64 (pixels), crop=1 to 64 (pixels), rotate=1 to 180 (degrees), flip, mixup, cutmix, "
    "mixup=ALPHA or cutmix=ALPHA (up to 100)"
)


def parse_augment(text: str) -> list[tuple[str, float]] | None:
    """Parses the value of ``--augment``.

    Args:
        text: ``none``, or NAME or NAME=NUMBER several times, with commas between them.

    Returns:
        Each name with its parameter, in the given order (``flip`` has 0); None if the text is invalid.
    """
    if text == "none":
        return []
    parameters: dict[str, float] = {}
    for part in text.split(","):
        name, equals, number = part.partition("=")
        if name in parameters:
            return None
        value = _parameter(name, number) if equals else {"flip": 0.0, "mixup": 1.0, "cutmix": 1.0}.get(name)
        if value is None:
            return None
        parameters[name] = value
    return list(parameters.items())


def mixes(text: str) -> bool:
    """Returns whether a checked setting mixes images."""
    return any(name in MIXES for name, _ in parse_augment(text) or ())


def _parameter(name: str, text: str) -> float | None:
    """Returns a valid parameter, else None; all but those of mixes are whole numbers."""
    form = r"[0-9]{1,9}(\.[0-9]{1,9})?" if name in MIXES else r"[0-9]{1,9}"
    if name not in LARGEST or not re.fullmatch(form, text):
        return None
    return float(text) if 0 < float(text) <= LARGEST[name] else None
