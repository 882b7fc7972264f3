"""Python files that a user names: imported, or a sentence that says why not."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from kdtrain.errors import KdtrainError, UsageError, one_line
from kdtrain.locations import sought
from kdtrain.user_code import located


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
    if not os.path.isfile(path):
        raise UsageError(f"{asked}: there is no file {sought(path)}.")
    spec = importlib.util.spec_from_file_location(f"kdtrain_{kind}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{asked}: it is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the annotations of their fields
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise not_importable(f"the {kind} {path}", error) from error
    return module


def not_importable(what: str, error: BaseException) -> KdtrainError:
    """Returns the error that says why a file or a module raised, and where, when it was imported."""
    place = located(what, error)
    comma = "," if place != what else ""
    return KdtrainError(f"{place}{comma} cannot be imported: {one_line(error)}.")
