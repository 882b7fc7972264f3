"""User code: the import of a Python file, and errors that name the line in it."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NamedTuple

from kdtrain.errors import KdtrainError, UsageError, one_line, unknown_name_message
from kdtrain.runtime.locations import display_path, missing_path_text

_PLUGINS = "kdtrain_plugins"
_PACKAGE = os.path.dirname(os.path.dirname(__file__))
_KDTRAIN = os.path.join(_PACKAGE, "")
_STANDARD_LIBRARY = os.path.join(os.path.dirname(os.__file__), "")
_LIBRARIES = {"matplotlib", "numpy", "oneflow", "scipy", "tensorboardX", "tqdm"}  # called by user code


class Call(NamedTuple):
    """A call on the stack: file and line, and the network or the layer whose method runs, or None."""

    file: str
    line: int
    module: Any


def load_callable(spec: str, kind: str, noun: str, asked: str) -> Callable[..., Any]:
    """Imports the file or module of ``FILE.py:NAME`` or ``MODULE:NAME``; returns its function or class NAME.

    Args:
        spec: the file or module, and the name.
        kind: what a file holds, as for ``import_file``.
        noun: what NAME is, in one word, such as ``factory``.
        asked: the flag and value that hold ``spec``, for an error to begin with.

    Raises:
        UsageError: there is no such file or name, or the name is not callable.
        KdtrainError: the file or module cannot be imported.
    """
    place, _, name = spec.rpartition(":")
    if place.endswith(".py"):
        module = import_file(Path(place), kind, asked)
    else:
        try:
            module = importlib.import_module(place)
        except (Exception, SystemExit) as error:
            raise import_failure(f"{asked}: {place}", error) from error
    value: Callable[..., Any] | None = getattr(module, name, None)
    if callable(value):
        return value
    options = [
        key
        for key, option in vars(module).items()
        if callable(option) and getattr(option, "__module__", None) == module.__name__
    ]
    raise UsageError(f"{asked}: {unknown_name_message(noun, name, options)}")


def import_file(path: Path, kind: str, asked: str) -> ModuleType:
    """Imports a Python file; returns its module.

    Args:
        path: the file.
        kind: what the file holds, in one word, such as ``plugin``.
        asked: the flag and value that name the file, for an error to begin with.

    Raises:
        UsageError: there is no such file, or it is no Python file.
        KdtrainError: the file raises an error when it is imported.
    """
    if not os.path.isfile(path):
        raise UsageError(f"{asked}: there is no file {missing_path_text(path)}.")
    spec = importlib.util.spec_from_file_location(f"kdtrain_{kind}_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{asked}: it is not a Python file.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up the annotations of their fields here
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[spec.name]
        raise import_failure(f"the {kind} {path}", error) from error
    return module


def import_failure(what: str, error: BaseException) -> KdtrainError:
    """Returns the error for a file or a module that cannot be imported, with the line and the reason."""
    place = with_source_line(what, error)
    comma = "," if place != what else ""
    return KdtrainError(f"{place}{comma} cannot be imported: {one_line(error)}.")


def is_user_code(file: str) -> bool:
    """Returns whether a source file is the user's: not of kdtrain, Python or an installed package."""
    return not file.startswith("<") and not os.path.realpath(file).startswith(_installed())


def is_library_code(file: str) -> bool:
    """Returns whether a source file is of kdtrain, Python or a library; an installed plugin is user code."""
    _, installed, module = file.rpartition("/site-packages/")
    if installed and not file.startswith(_KDTRAIN):
        return module.partition("/")[0] in _LIBRARIES
    return file.startswith((_KDTRAIN, _STANDARD_LIBRARY, "<"))


def class_label(cls: type) -> str:
    """Returns the name of a class in messages: ``FILE.py:CLASS`` if it is user code."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return f"{display_path(file)}:{cls.__name__}" if file and is_user_code(file) else cls.__name__


def call_network(network: Any, inputs: Any) -> Any:
    """Returns ``network(inputs)``.

    Args:
        network: a network.
        inputs: its inputs, usually an (N, C, H, W) float32 tensor.

    Raises:
        KdtrainError: the network raises; the text names it, and the line of user code.
    """
    try:
        return network(inputs)
    except KdtrainError:
        raise
    except (Exception, SystemExit) as error:
        raise user_code_error(f"the network {class_label(type(network))}", error, network) from error


def user_code_error(what: str, error: BaseException, at: Callable[..., Any] | None = None) -> KdtrainError:
    """Returns the error for user code ``what`` that has raised ``error``, with the line."""
    return KdtrainError(f"{with_source_line(what, error, at)}: {one_line(error)}.")


def with_source_line(what: str, error: BaseException, at: Callable[..., Any] | None = None) -> str:
    """Returns ``what`` with the line of user code that has raised an error.

    This is the innermost frame in a file of the user's, because the frames inside oneflow do not help.

    Args:
        what: the name of the code; the file of the line is left out if ``what`` names it.
        error: the error.
        at: a function whose first line is named if no frame is user code.
    """
    return with_place(what, calls_of(traceback.walk_tb(error.__traceback__)), at)


def calls_of(frames: Iterable[tuple[FrameType, int]]) -> list[Call]:
    """Returns the calls of a stack, in its order."""
    owners = ((frame, line, frame.f_locals.get("self")) for frame, line in frames)
    return [
        Call(frame.f_code.co_filename, line, owner if hasattr(type(owner), "named_modules") else None)
        for frame, line, owner in owners
    ]


def with_place(what: str, calls: Sequence[Call], at: Callable[..., Any] | None = None) -> str:
    """Returns ``what`` with the innermost line of user code of some calls, and the layer of a network.

    Args:
        what: as in ``with_source_line``.
        calls: from the outermost to the innermost.
        at: as in ``with_source_line``.
    """
    places = [*_definition(at), *((call.file, call.line) for call in calls)]
    for file, line in [place for place in places if is_user_code(place[0])][-1:]:
        is_named = re.search(rf"(^|[\s/]){re.escape(display_path(file))}([:,\s]|$)", what)
        what += f", line {line}" if is_named else f", {display_path(file)} line {line}"
    modules = [call.module for call in calls if call.module is not None]
    names = {id(layer): name for module in modules[:1] for name, layer in module.named_modules()}
    name = names.get(id(modules[-1])) if modules else None
    return f"{what}, layer {name!r} ({type(modules[-1]).__name__})" if name else what


def _definition(function: Any) -> list[tuple[str, int]]:
    """Returns file and first line of a function, of a module's ``forward`` or of a ``__call__``."""
    while isinstance(function, partial):
        function = function.func
    methods = [getattr(function, name, None) for name in ("forward", "__call__")]
    codes = [candidate.__code__ for candidate in (function, *methods) if hasattr(candidate, "__code__")]
    return [(code.co_filename, code.co_firstlineno) for code in codes[:1]]


def _installed() -> tuple[str, ...]:
    """Returns the folders of kdtrain, its plugins, Python and installed packages."""
    paths = sysconfig.get_paths()
    folders = {paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders.add(_PACKAGE)
    plugins = getattr(sys.modules.get(_PLUGINS), "__path__", ())
    return tuple(os.path.join(os.path.realpath(folder), "") for folder in (*folders, *plugins))
