"""What ``--augment`` accepts; on its own, so that the command line needs no NumPy to check it."""

from __future__ import annotations

LARGEST = {"shift": 64, "crop": 64, "rotate": 180}
"""The largest parameter of each augmentation that has one: pixels, pixels, degrees."""

AUGMENT_FORMS = "shift=1 to 64 (pixels), crop=1 to 64 (pixels), rotate=1 to 180 (degrees), flip"


def parse_augment(text: str) -> list[tuple[str, int]] | None:
    """Returns names with parameters, in the order in which they are applied; ``flip`` has 0.

    Args:
        text: ``none``, or names with commas between them.

    Returns:
        None if the text is not understood.
    """
    if text == "none":
        return []
    found: dict[str, int] = {}
    for word in text.split(","):
        name, equals, number = word.partition("=")
        if name in found:
            return None
        if name == "flip" and not equals:
            found[name] = 0
        elif (
            name in LARGEST
            and number.isascii()
            and number.isdecimal()
            and 1 <= int(number[:4]) <= LARGEST[name]
        ):
            found[name] = int(number)
        else:
            return None
    return list(found.items())
