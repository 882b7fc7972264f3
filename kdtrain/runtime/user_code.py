"""The user's own code: importing a file of it, and naming the line of it that an error came from."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from kdtrain.errors import KdtrainError, UsageError, one_line
from kdtrain.runtime.locations import display_path, missing_path_text

_PLUGINS = "kdtrain_plugins"
_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_KDTRAIN = os.path.join(_PACKAGE, "")
_STANDARD_LIBRARY = os.path.join(os.path.dirname(os.__file__), "")
_LIBRARIES = {"matplotlib", "numpy", "oneflow", "scipy", "tensorboardX", "tqdm"}  # users' code calls them


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
        raise UsageError(f"{asked}: there is no file {missing_path_text(path)}.")
    spec = importlib.util.spec_from_file_location(f"kdtrain_{kind}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{asked}: it is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up the annotations of their fields
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise import_failure(f"the {kind} {path}", error) from error
    return module


def import_failure(what: str, error: BaseException) -> KdtrainError:
    """Returns the error that says why a file or a module raised, and where, when it was imported."""
    place = with_source_line(what, error)
    comma = "," if place != what else ""
    return KdtrainError(f"{place}{comma} cannot be imported: {one_line(error)}.")


def is_user_code(file: str) -> bool:
    """Returns whether a source file is none of kdtrain's, of Python's or of an installed package."""
    return not file.startswith("<") and not os.path.realpath(file).startswith(_installed())


def is_library_code(file: str) -> bool:
    """Returns whether a source file is kdtrain's, Python's or a library's; an installed plugin is neither."""
    _, installed, module = file.rpartition("/site-packages/")
    if installed and not file.startswith(_KDTRAIN):
        return module.partition("/")[0] in _LIBRARIES
    return file.startswith((_KDTRAIN, _STANDARD_LIBRARY, "<"))


def class_label(cls: type) -> str:
    """Returns what messages call a class: ``FILE.py:CLASS`` if a file of the user's has it."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return f"{display_path(file)}:{cls.__name__}" if file and is_user_code(file) else cls.__name__


def call_network(network: Any, inputs: Any) -> Any:
    """Returns what a network makes of its inputs.

    Raises:
        KdtrainError: it raises; the text names the network, and the line if it is the user's.
    """
    try:
        return network(inputs)
    except KdtrainError:
        raise
    except (Exception, SystemExit) as error:
        raise user_code_error(f"the network {class_label(type(network))}", error, network) from error


def user_code_error(what: str, error: BaseException, at: Callable[..., Any] | None = None) -> KdtrainError:
    """Returns the error that names ``what`` of the user's has raised ``error``, and in which line."""
    return KdtrainError(f"{with_source_line(what, error, at)}: {one_line(error)}.")


def with_source_line(what: str, error: BaseException, at: Callable[..., Any] | None = None) -> str:
    """Returns ``what`` and the line of the user's code that has raised an error.

    It is the innermost call in a file of the user's: what oneflow does there tells nobody anything.

    Args:
        what: says whose code it is; the line's file is left out where ``what`` names it.
        error: what was raised.
        at: whose own line it is where no line of the user's is to blame, if it is the user's.
    """
    calls = [(call.filename, call.lineno) for call in traceback.extract_tb(error.__traceback__)]
    places = [place for place in (*_definition(at), *calls) if is_user_code(place[0])]
    if not places:
        return what
    file, line = places[-1]
    known = re.search(rf"(^|[\s/]){re.escape(display_path(file))}([:,\s]|$)", what)
    return f"{what}, line {line}" if known else f"{what}, {display_path(file)} line {line}"


def _definition(function: Any) -> list[tuple[str, int]]:
    """Returns the file and the line in which a function, a module's ``forward`` or a ``__call__`` begins."""
    while isinstance(function, partial):
        function = function.func
    methods = [getattr(function, name, None) for name in ("forward", "__call__")]
    codes = [one.__code__ for one in (function, *methods) if hasattr(one, "__code__")]
    return [(code.co_filename, code.co_firstlineno) for code in codes[:1]]


def _installed() -> tuple[str, ...]:
    """Returns the folders of kdtrain, its plugins, Python and the packages that are installed."""
    paths = sysconfig.get_paths()
    folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.add(_PACKAGE)
    plugins = getattr(sys.modules.get(_PLUGINS), "__path__", ())
    return tuple(os.path.join(os.path.realpath(folder), "") for folder in (*folders, *plugins))
