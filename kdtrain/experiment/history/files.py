"""Readers of a run's files. A damaged file is listed, not raised."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tomli

from kdtrain.errors import KdtrainError
from kdtrain.runtime.regular_files import read_text
from kdtrain.store.metrics_file import read_metrics

RESULT, CONFIG, COMPARISON, SEARCH = "result.json", "config.toml", "compare.json", "tune.json"
FILES = (RESULT, CONFIG, COMPARISON, SEARCH, "metrics.jsonl")
"""The files by which a directory is known as that of a run."""

_LARGEST = 1 << 28  # bytes; compare.json takes about 50,000 for each seed
_DEEPEST = 3  # folders between a run and one inside of it: tune/version_0/trials/MODEL_NUMBER/seed_0
_OTHERS = {"checkpoints", "cache", "models", "images"}  # folders that hold no runs


@dataclass
class RunFiles:
    """The readable files of one run directory.

    Attributes:
        directory: the directory.
        faults: a text for each file that is there and cannot be read; filled by the reading methods.
    """

    directory: Path
    faults: list[str] = field(default_factory=list)

    def json(self, name: str) -> dict[str, Any]:
        """Returns the content of a JSON file; empty if there is none, or none that can be read."""
        return self._read(name, json.loads)

    def toml(self, name: str) -> dict[str, Any]:
        """Returns the content of a TOML file; empty if there is none, or none that can be read."""
        return self._read(name, tomli.loads)

    def metrics(self) -> list[dict[str, Any]]:
        """Returns the rows of metrics.jsonl; none if there is none, or none that can be read."""
        try:
            return read_metrics(self.directory)
        except KdtrainError as error:
            text = str(error).removesuffix(" Fix it, or move it away.").rstrip(".")
            self.faults.append(text.replace(f"{self.directory}{os.sep}", ""))
            return []

    def parts(self) -> Iterator[Path]:
        """Yields the directories of the runs inside of this one, in the order of their names."""
        yield from _parts(self.directory, _DEEPEST)

    def changed(self) -> float:
        """Returns the time of the latest change of a run's files, in seconds since 1970; 0 without files."""
        times = [0.0]
        for name in FILES:
            try:
                times.append((self.directory / name).stat().st_mtime)
            except OSError:
                continue
        return max(times)

    def _read(self, name: str, parse: Any) -> dict[str, Any]:
        try:
            content = parse(read_text(self.directory / name, _LARGEST))
        except FileNotFoundError:
            return {}
        except OSError as error:
            self.faults.append(f"{name} cannot be read: {error.strerror or error}")
            return {}
        except (ValueError, RecursionError) as error:  # not UTF-8, or no JSON or TOML
            self.faults.append(f"{name} is damaged: {str(error).splitlines()[0]}")
            return {}
        if not isinstance(content, dict):
            self.faults.append(f"{name} is damaged: it holds no table of values")
            return {}
        return content


def _parts(folder: Path, depth: int) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))
    except OSError:
        return
    for name in names:
        inside = folder / name
        if name in _OTHERS:
            continue
        if is_run(inside):
            yield inside
        elif depth > 1:
            yield from _parts(inside, depth - 1)


def is_run(directory: Path) -> bool:
    """Returns whether a directory holds a file of a run."""
    return any(os.path.lexists(directory / name) for name in FILES)


def at(content: Any, *keys: str | int) -> Any:
    """Returns an entry of nested objects and lists; None where there is no such entry."""
    for key in keys:
        if isinstance(key, int):
            content = (
                content[key] if isinstance(content, list) and -len(content) <= key < len(content) else None
            )
        else:
            content = content.get(key) if isinstance(content, Mapping) else None
    return content


def number(content: Any, *keys: str | int) -> float | None:
    """Returns a finite number at some place; None where there is none."""
    value = at(content, *keys)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) >= 2**63:
        return None
    return float(value) if math.isfinite(value) else None


def whole(content: Any, *keys: str | int) -> int | None:
    """Returns a whole number at some place; None where there is none."""
    value = number(content, *keys)
    return int(value) if value is not None and value == int(value) else None


def text(content: Any, *keys: str | int) -> str | None:
    """Returns a text at some place, on one line; None where there is none, or an empty one."""
    value = at(content, *keys)
    return " ".join(value.split()) or None if isinstance(value, str) else None


def held_out_accuracy(figures: Any) -> float | None:
    """Returns the accuracy on the held-out images among the figures of an epoch; None without one."""
    return number(figures, "val/accuracy")
