"""Old names of public attributes: they work for one more version, with a warning."""

from __future__ import annotations

import warnings
from typing import Any


class OldName:
    """An attribute or a method with a new name.

    Args:
        new: its new name.
    """

    def __init__(self, new: str) -> None:
        self.new = new

    def __set_name__(self, owner: type, name: str) -> None:
        self.old = name

    def __get__(self, instance: Any, owner: type) -> Any:
        if instance is None:
            return self
        warnings.warn(
            f"{owner.__name__}.{self.old} is now called {self.new}; the old name goes with kdtrain 0.2.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(instance, self.new)
