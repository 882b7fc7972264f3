"""Python files that a user names: imported, or a sentence that says why not."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from kdtrain.errors import KdtrainError, UsageError


def import_file(path: Path, kind: str, asked: str) -> ModuleType:
    """Returns the module that a file makes.

    Args:
        path: the file.
        kind: what is looked for in it, in one word, such as ``plugin``.
        asked: what the user has written, for an error to begin with.

    Raises:
        UsageError: there is no such file, or it is no Python file.
        KdtrainError: it raises when it is imported.
    """
    if not path.is_file():
        raise UsageError(f"{asked}: there is no file {path}.")
    spec = importlib.util.spec_from_file_location(f"kdtrain_{kind}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{asked}: it is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the annotations of their fields
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise KdtrainError(f"the {kind} {path} cannot be imported: {reason(error)}.") from error
    return module


def reason(error: BaseException) -> str:
    """Returns an error on one line, to go into a sentence."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    if text != str(error):  # oneflow's have colours, and a stack of C++ calls before the last line
        text = text.strip().rpartition("\n")[2]
    text = " ".join(text.split()).rstrip(".")
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
