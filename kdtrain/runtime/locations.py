"""Paths and printed commands: paths are made absolute, shortened, or described in messages."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from pathlib import Path

_FILE = re.compile(r"(?P<file>.+?\.py)(:[^/,:]*(,.*)?)?", re.DOTALL)
_DATA = ("folder", "csv", "npz")
_COMMAND = r"`[^`\n]+`|((?<=: )(?<!^kdtrain: )|(?<=^  ))(kdtrain|{begun}) [a-z].*"
_PROGRAM = re.compile(r"(^|(?<=[`(]))kdtrain(?= )")


def command_name() -> str:
    """Returns how the user began this command: ``scripts/kdtrain``, ``.venv/bin/kdtrain`` or ``kdtrain``."""
    begun = os.environ.get("KDTRAIN_COMMAND") or sys.argv[0]  # scripts/kdtrain sets the variable
    if os.path.basename(begun) != "kdtrain":  # python -m kdtrain, or Python code
        return "kdtrain"
    in_path = shutil.which("kdtrain")
    is_in_path = in_path is not None and os.path.abspath(in_path) == os.path.abspath(begun)
    return "kdtrain" if is_in_path else shlex.quote(begun)


def with_commands(text: str, space: str = " ") -> str:
    """Returns a message whose commands of kdtrain begin as the user began.

    Args:
        text: the message. Its commands are between backticks, or end lines behind a colon or an indentation.
        space: what stands for a space in a command.
    """
    begun = command_name()
    command = re.compile(_COMMAND.format(begun=re.escape(begun)), re.MULTILINE)
    return command.sub(lambda match: _PROGRAM.sub(lambda _: begun, match[0]).replace(" ", space), text)


def absolute_name(name: str) -> str:
    """Returns the name of a data set, a network or a plugin with an absolute path, if it has a path.

    The result names one file in every working directory: ``folder:pictures`` becomes
    ``folder:/home/ada/pictures``, and ``net.py:make`` becomes ``/home/ada/net.py:make``.
    """
    kind, colon, path = name.partition(":")
    if colon and kind in _DATA:
        return f"{kind}:{os.path.abspath(path)}" if path else name
    file = source_file(name)
    return os.path.abspath(file) + name[len(file) :] if file else name


def short_name(name: str) -> str:
    """Returns the name of a data set, a network or a plugin without folders, for a table."""
    kind, colon, path = name.partition(":")
    if colon and kind in _DATA:
        return f"{kind}:{os.path.basename(path.rstrip('/')) or path}"
    file = source_file(name)
    return os.path.basename(file) + name[len(file) :]


def source_file(name: str) -> str:
    """Returns the path in ``FILE.py``, ``FILE.py:NAME`` or ``FILE.py:NAME,key=value``; else an empty text."""
    match = _FILE.fullmatch(name)
    return match["file"] if match else ""


def missing_path_text(path: Path | str) -> str:
    """Returns the text of a missing path; with its absolute path if it is relative."""
    return str(path) if os.path.isabs(path) else f"{path} (looked for at {os.path.abspath(path)})"


def display_path(path: Path | str) -> str:
    """Returns a path relative to the working directory if it is inside, and absolute otherwise."""
    path = os.path.abspath(path)
    inside = os.path.relpath(path)
    return path if inside.startswith(os.pardir) else inside
