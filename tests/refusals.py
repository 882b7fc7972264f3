"""The check that refused files share, and a bomb for files that may hold pickles."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def refusal_by(call: Callable[..., object], error: type[Exception]) -> Callable[..., str]:
    """Returns a function that calls ``call``, expects an error, and returns the error's text.

    The text is one line, ends with one full stop, and names the first argument, which is a path.
    """

    def refusal(path: Path, *arguments: object, **options: object) -> str:
        with pytest.raises(error) as caught:
            call(path, *arguments, **options)
        text = str(caught.value)
        assert str(path) in text
        assert "\n" not in text
        assert text.endswith(".")
        assert not text.endswith("..")
        return text

    return refusal


class Bomb:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call
