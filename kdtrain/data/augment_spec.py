"""What ``--augment`` accepts; on its own, so that the command line needs no NumPy to check it."""

from __future__ import annotations

import re

LARGEST = {"shift": 64, "crop": 64, "rotate": 180, "mixup": 100}
"""The largest parameter of each augmentation that has one: pixels, pixels, degrees, alpha."""

AUGMENT_FORMS = (
    "shift=1 to 64 (pixels), crop=1 to 64 (pixels), rotate=1 to 180 (degrees), flip, mixup, "
    "mixup=ALPHA (up to 100)"
)


def parse_augment(text: str) -> list[tuple[str, float]] | None:
    """Returns names with parameters, in the order in which they are written; ``flip`` has 0.

    Args:
        text: ``none``, or names with commas between them.

    Returns:
        None if the text is not understood.
    """
    if text == "none":
        return []
    found: dict[str, float] = {}
    for word in text.split(","):
        name, equals, number = word.partition("=")
        if name in found:
            return None
        value = _parameter(name, number) if equals else {"flip": 0.0, "mixup": 1.0}.get(name)
        if value is None:
            return None
        found[name] = value
    return list(found.items())


def _parameter(name: str, text: str) -> float | None:
    """Returns a parameter that is allowed, else None: a whole number but for mixup's."""
    form = r"[0-9]{1,9}(\.[0-9]{1,9})?" if name == "mixup" else r"[0-9]{1,9}"
    if name not in LARGEST or not re.fullmatch(form, text):
        return None
    return float(text) if 0 < float(text) <= LARGEST[name] else None
