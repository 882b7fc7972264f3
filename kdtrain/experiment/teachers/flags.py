"""The settings that describe teachers, which several teachers share out among them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from kdtrain.errors import UsageError
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.schema import flag_of

DESCRIBING = ("teacher_mean", "teacher_std", "teacher_input_size", "teacher_layout", "teacher_classes")
"""The settings that say what a teacher's file does not."""


class TeacherFlags:
    """The values of ``DESCRIBING``: the n-th is that of the n-th teacher which needs it, one is that of all.

    Args:
        config: the settings.
    """

    def __init__(self, config: FitConfig) -> None:
        self._values: dict[str, tuple[Any, ...]] = {name: getattr(config, name) for name in DESCRIBING}
        self._takers = dict.fromkeys(DESCRIBING, 0)
        self._taken: dict[str, Any] = {}

    def next(self, name: str) -> Any:
        """Returns the value for the next teacher that needs it; None if there is none."""
        values, number = self._values[name], self._takers[name]
        return values[0] if len(values) == 1 else values[number] if number < len(values) else None

    def take(self, name: str, path: Path) -> Any:
        """Returns the value for a teacher that needs it, which the next one does not get; None without any.

        Raises:
            UsageError: there are several values, and the teachers before this one have them.
        """
        value, values = self.next(name), self._values[name]
        if value is None and values:
            raise UsageError(
                f"{flag_of(name)} is given {len(values)} times, and {path} needs it too: give it once for "
                "all teachers that need it, or once for each of them, in their order."
            )
        self._takers[name] += 1
        if value is not None:
            self._taken[name] = value
        return value

    def taken(self) -> dict[str, Any]:
        """Returns the values that were taken since the last call."""
        taken, self._taken = self._taken, {}
        return taken

    def check_used(self) -> None:
        """Raises UsageError if a value is for no teacher."""
        for name, values in self._values.items():
            takers = self._takers[name]
            if takers < len(values):
                count = f"{len(values)} time{'s' * (len(values) > 1)}"
                teachers = f"{takers or 'no'} teacher{'s' * (takers > 1)} need{'s' * (takers < 2)}"
                raise UsageError(
                    f"{flag_of(name)} is given {count}, and {teachers} it, because kdtrain's files and "
                    f"graphs tell what they can: leave {flag_of(name)} {values[takers]} out."
                )
