"""The names of the figures on held-out images, and the old names, which are still read."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

ACCURACY = "val/accuracy"
"""Accuracy on the held-out images, a fraction."""

CROSS_ENTROPY = "val/cross_entropy"
"""Cross-entropy on the held-out images, in nats per image."""

_OLD, _NEW = "eval/", "val/"


def current_name(name: str) -> str:
    """Returns the name of a figure: ``val/accuracy`` for ``eval/accuracy``, any other name unchanged."""
    return _NEW + name.removeprefix(_OLD) if name.startswith(_OLD) else name


def warn_of_old_name(name: str, new: str, stacklevel: int = 3) -> None:
    """Warns that a figure has a new name."""
    warnings.warn(
        f"{name} is now called {new}; the old name goes with kdtrain 0.2.", DeprecationWarning, stacklevel
    )


class Metrics(Mapping[str, float]):
    """Figures by name, read-only. An old name such as ``eval/accuracy`` still works, with a warning.

    Args:
        values: the figures; old names are replaced by the current ones.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        self._values = {current_name(name): value for name, value in values.items()}

    def __getitem__(self, name: str) -> float:
        """Returns a figure.

        Raises:
            KeyError: there is no figure of this name.
        """
        new = self._current(name)
        if new != name:
            warn_of_old_name(name, new)
        return self._values[new]

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and self._current(name) in self._values

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return repr(self._values)

    def on_held_out_images(self) -> Metrics:
        """Returns the figures under the names of those on held-out images: with ``val/`` in front."""
        return Metrics({name if "/" in name else _NEW + name: value for name, value in self.items()})

    def _current(self, name: str) -> str:
        """Returns the name that an old one stands for; any other name unchanged."""
        bare = name.removeprefix(_OLD)
        names = (name, current_name(name), bare)  # without a prefix in what ``Trainer.evaluate`` returns
        return next((new for new in names if new in self._values), name)
