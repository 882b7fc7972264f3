"""The check that refused files share: which error is raised, and that its text names the file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


def refusal_by(call: Callable[..., object], error: type[Exception]) -> Callable[..., str]:
    """Returns a function that calls ``call``, expects an error, and returns the error's text.

    The text is one line, ends with one full stop, and names the first argument, which is a path.
    """

    def refusal(path: Path, *arguments: object) -> str:
        with pytest.raises(error) as caught:
            call(path, *arguments)
        text = str(caught.value)
        assert str(path) in text
        assert "\n" not in text
        assert text.endswith(".")
        assert not text.endswith("..")
        return text

    return refusal
