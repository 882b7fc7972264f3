"""Paths as users write them: where a relative one leads, and how a path is shown."""

from __future__ import annotations

import os
import re
from pathlib import Path

_FILE = re.compile(r"(?P<file>.+?\.py)(:[^/,:]*(,.*)?)?", re.DOTALL)
_DATA = ("folder", "npz")


def absolute_name(name: str) -> str:
    """Returns the name of a data set, a network or a plugin, with its path, if there is one, made absolute.

    It then stands for the same file wherever kdtrain is started: ``folder:pictures`` becomes
    ``folder:/home/ada/pictures``, and ``net.py:make`` becomes ``/home/ada/net.py:make``.
    """
    kind, colon, path = name.partition(":")
    if colon and kind in _DATA:
        return f"{kind}:{os.path.abspath(path)}" if path else name
    file = source_file(name)
    return os.path.abspath(file) + name[len(file) :] if file else name


def short_name(name: str) -> str:
    """Returns the name of a data set, a network or a plugin without the folders in its path, for a table."""
    kind, colon, path = name.partition(":")
    if colon and kind in _DATA:
        return f"{kind}:{os.path.basename(path.rstrip('/')) or path}"
    file = source_file(name)
    return os.path.basename(file) + name[len(file) :]


def source_file(name: str) -> str:
    """Returns the path in ``FILE.py``, ``FILE.py:NAME`` or ``FILE.py:NAME,key=value``; else an empty text."""
    found = _FILE.fullmatch(name)
    return found["file"] if found else ""


def missing_path_text(path: Path | str) -> str:
    """Returns a path that is not there, and where it was looked for, if it is a relative one."""
    return str(path) if os.path.isabs(path) else f"{path} (looked for at {os.path.abspath(path)})"


def display_path(path: Path | str) -> str:
    """Returns a path relative to the working directory if it lies in there, and absolute otherwise."""
    path = os.path.abspath(path)
    inside = os.path.relpath(path)
    return path if inside.startswith(os.pardir) else inside
