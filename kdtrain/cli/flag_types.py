"""Types of flags: functions that read a flag's text, or raise with what the flag must be."""

from __future__ import annotations

import argparse
from typing import Any

from kdtrain.errors import clipped, did_you_mean


def whole_number(text: str) -> int:
    """Returns the integer that ``text`` spells.

    Raises:
        ArgumentTypeError: it spells none, or one of more digits than Python reads.
    """
    try:
        return int(text)
    except ValueError:
        too_long = text.strip("-").isdecimal()
        raise _wrong(text, "a number of fewer digits" if too_long else "a whole number") from None


def number(text: str) -> float:
    """Returns the number that ``text`` spells.

    Raises:
        ArgumentTypeError: it spells none.
    """
    try:
        return float(text)
    except ValueError:
        raise _wrong(text, "a number") from None


def choice(*options: str) -> dict[str, Any]:
    """Returns the ``type`` and ``metavar`` of a flag whose value is one of ``options``.

    The type suggests the option that is nearest to a mistyped one, which argparse's ``choices`` does not.
    """

    def option(text: str) -> str:
        if text not in options:
            raise _wrong(text, " or ".join(options) + did_you_mean(text, options))
        return text

    return {"type": option, "metavar": f"{{{','.join(options)}}}"}


def _wrong(text: str, demand: str) -> argparse.ArgumentTypeError:
    return argparse.ArgumentTypeError(f"is {clipped(text, repr)}: it must be {demand}")
