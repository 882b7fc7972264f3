"""What tests of refused files share: the check of the error, damaged contents, and a bomb in a pickle."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import strategies as st


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


def damaged(content: bytes, data: st.DataObject) -> bytes:
    """Returns a content after one to three changes, each of which sets, flips, cuts or inserts bytes."""
    result = bytearray(content)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(result) - 1))
        match data.draw(st.sampled_from(["set", "flip", "cut", "cut off", "insert"])):
            case "set":
                result[place] = data.draw(st.integers(0, 255))
            case "flip":
                result[place] ^= 1 << data.draw(st.integers(0, 7))
            case "cut":
                del result[place : place + data.draw(st.integers(1, 20))]
            case "cut off":
                del result[place:]
            case "insert":
                result[place:place] = data.draw(st.binary(min_size=1, max_size=20))
        if not result:
            break
    return bytes(result)


class Bomb:
    """Pickles to a call."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call
