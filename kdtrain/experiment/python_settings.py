"""Settings as Python code gives them, by keyword."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdtrain.errors import UsageError, unknown_name_message
from kdtrain.experiment.config import FitConfig

ALL_SETTINGS = tuple(field.name for field in dataclasses.fields(FitConfig))
"""The names of the settings of ``kdtrain fit``."""


def given_settings(
    function: str, settings: Mapping[str, Any], names: Collection[str] = ALL_SETTINGS
) -> dict[str, Any]:
    """Returns the settings that are given, as flags and files have them: without None and NumPy's numbers.

    Args:
        function: the public function, for an error to begin with.
        settings: values by the name of their setting.
        names: the settings that the function takes.

    Raises:
        UsageError: a setting is unknown.
    """
    for name in settings:
        if name not in names:
            raise UsageError(f"{function}: {unknown_name_message('setting', name, names)}")
    return {name: _plain(value) for name, value in settings.items() if value is not None}


def as_path(path: Path | str | None) -> Path | None:
    """Returns a path, from a text or a path."""
    return None if path is None else Path(path)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return Path(value)
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value
