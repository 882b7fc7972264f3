"""Paths as users write them: where a relative one leads, and how a path is shown."""

from __future__ import annotations

import os
import re
from pathlib import Path

_FILE = re.compile(r"(?P<file>.+?\.py)(?P<rest>:[^/,:]*(,.*)?)?", re.DOTALL)
_DATA = ("folder", "npz")


def anchored(name: str) -> str:
    """Returns the name of a data set, a network or a plugin, with its path, if there is one, made absolute.

    It then stands for the same file wherever kdtrain is started: ``folder:pictures`` becomes
    ``folder:/home/ada/pictures``, and ``net.py:make`` becomes ``/home/ada/net.py:make``.
    """
    kind, colon, path = name.partition(":")
    if colon and kind in _DATA:
        return f"{kind}:{os.path.abspath(path)}" if path else name
    file = _FILE.fullmatch(name)
    return f"{os.path.abspath(file['file'])}{file['rest'] or ''}" if file else name


def sought(path: Path | str) -> str:
    """Returns a path that is not there, and where it was looked for, if it is a relative one."""
    return str(path) if os.path.isabs(path) else f"{path} (looked for at {os.path.abspath(path)})"


def shown(path: Path | str) -> str:
    """Returns a path relative to the working directory if it lies in there, and absolute otherwise."""
    path = os.path.abspath(path)
    inside = os.path.relpath(path)
    return path if inside.startswith(os.pardir) else inside
