"""Settings as Python code gives them, by keyword."""

from __future__ import annotations

import csv
import dataclasses
import functools
import inspect
import io
import json
import os
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import numpy as np

from kdtrain.errors import KdtrainError, UsageError, clipped, unknown_name_message
from kdtrain.experiment.settings.config import FitConfig

P = ParamSpec("P")
T = TypeVar("T")

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
    values = {name: _plain(value) for name, value in settings.items() if value is not None}
    return {name: _TEXTS.get(name, lambda plain: plain)(value) for name, value in values.items()}


def naming_arguments(function: Callable[P, T]) -> Callable[P, T]:
    """Returns a function of settings whose errors name arguments: ``batch_size``, not ``--batch-size``.

    What is in backticks is a command, and keeps its flags.
    """
    names = {*ALL_SETTINGS, *inspect.signature(function).parameters}

    def argument(match: re.Match[str]) -> str:
        name = (match[1] or "").replace("-", "_")
        return name if name in names else match[0]

    @functools.wraps(function)
    def call(*args: P.args, **settings: P.kwargs) -> T:
        try:
            return function(*args, **settings)
        except KdtrainError as error:
            error.args = (re.sub(r"`[^`]*`|--([a-z][a-z-]*)", argument, str(error)),)
            raise

    return call


def as_path(path: Path | str | None) -> Path | None:
    """Returns a path, from a text or a path."""
    return None if path is None else Path(path)


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, os.PathLike):
        return Path(value)
    return list(map(_plain, value)) if isinstance(value, (list, tuple)) else value


def _texts_of_channels(value: Any) -> Any:
    """Returns the texts of flags for numbers per channel: those of one teacher, or a list for several."""
    if isinstance(value, list) and not all(isinstance(item, (int, float)) for item in value):
        return [_text(item, ",".join) for item in value]
    return _text(value, ",".join)


def _texts_of_classes(value: Any) -> Any:
    """Returns the texts of flags for classes: a list or mapping of one teacher, or a list of those.

    A list of several texts is that of one teacher's names, unless all of them are texts of flags.
    """
    if isinstance(value, list) and (
        any(isinstance(item, (list, Mapping)) for item in value)
        or (len(value) == 1 and isinstance(value[0], str))
        or all(re.search(r"^\S+,\S+$|\.json$|^\{", clipped(item)) for item in value or [""])
    ):
        return [_text(item, _quoted) for item in value]
    return _text(value, _quoted)


def _text(value: Any, join: Callable[[list[str]], str]) -> str:
    """Returns a value as the text of a flag: an object as JSON, a sequence joined."""
    if isinstance(value, Mapping):
        return json.dumps({str(key): clipped(_plain(entry)) for key, entry in value.items()})
    if isinstance(value, (list, tuple)):
        return join([clipped(item) if isinstance(item, (int, float)) else str(item) for item in value])
    return clipped(value) if isinstance(value, (int, float)) else str(value)


def _quoted(entries: list[str]) -> str:
    """Returns entries joined by commas; one with a comma is put in double quotes."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(entries)
    return line.getvalue()


_TEXTS: dict[str, Callable[[Any], Any]] = {
    "teacher_mean": _texts_of_channels,
    "teacher_std": _texts_of_channels,
    "teacher_classes": _texts_of_classes,
}
"""The settings whose value may be something else than texts in Python."""
