"""The loader of plugins: callbacks by entry-point name or file, made from the text of a --plugin flag."""

from __future__ import annotations

import importlib.metadata
import inspect
import re
import textwrap
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import UnionType
from typing import Any, TypeGuard

from kdtrain.engine.callback import HOOKS, Callback, CallbackList
from kdtrain.engine.losses import cross_entropy
from kdtrain.engine.objective import Objective
from kdtrain.engine.recorder import Recorder, Teacher
from kdtrain.errors import KdtrainError, UsageError, one_line, unknown_name_message
from kdtrain.runtime import flow
from kdtrain.runtime.locations import source_file
from kdtrain.runtime.user_code import import_failure, import_file, with_source_line

GROUP = "kdtrain.plugins"


@dataclass(frozen=True)
class PluginOption:
    """An argument of a plugin.

    Attributes:
        name: its name.
        default: its default as ``--plugin`` takes it; None if it must be given.
        meaning: its line in the docstring's section ``Args:``.
    """

    name: str
    default: str | None
    meaning: str


@dataclass(frozen=True)
class PluginInfo:
    """A plugin.

    Attributes:
        name: its name for ``--plugin``, or ``FILE.py:CLASS``.
        source: its distribution and class.
        summary: first line of its docstring, or the reason why it cannot be loaded.
        arguments: arguments of its constructor, with defaults.
        hooks: hooks that it overrides.
        kind: ``soft targets`` and ``layers`` compare student and teacher; ``control`` changes a fit without
            a teacher; ``observer`` changes nothing; ``unusable`` cannot be loaded.
        options: the arguments one by one.
        card: when to use it, from the section ``Card:``: ``Copies``, ``Helps``, ``Hurts``, ``Cost`` and
            ``Measured``.
    """

    name: str
    source: str
    summary: str
    arguments: str = ""
    hooks: tuple[str, ...] = ()
    kind: str = "unusable"
    options: tuple[PluginOption, ...] = ()
    card: Mapping[str, str] = field(default_factory=dict)


def load_plugin(spec: str) -> Callback:
    """Returns the callback that ``NAME[,key=value...]`` or ``FILE.py:CLASS[,key=value...]`` describes.

    Args:
        spec: what ``--plugin`` takes, such as ``"dkd,beta=2"``.

    Raises:
        UsageError: the plugin or an argument is unknown, or its constructor raises.
        KdtrainError: it cannot be imported.
    """
    target, words = _split(spec)
    cls = _class(target)
    arguments = _arguments(cls, words, target)
    try:
        return cls(**arguments)
    except KdtrainError as error:
        raise UsageError(f"--plugin {spec}: {error}") from error
    except (Exception, SystemExit) as error:
        place = with_source_line(f"--plugin {spec}", error)
        raise UsageError(f"{place}: {cls.__name__} cannot be made: {one_line(error)}.") from error


def plugin_name(spec: str) -> str:
    """Returns ``NAME`` of ``NAME,key=value``, and ``CLASS`` of ``FILE.py:CLASS,key=value``."""
    return _split(spec)[0].rpartition(":")[2]


def numeric_arguments(spec: str) -> dict[str, int | float]:
    """Returns the arguments of a plugin that are numbers, with the values that they have in ``spec``.

    Raises:
        UsageError: the plugin or an argument is unknown.
        KdtrainError: the plugin cannot be imported.
    """
    target, words = _split(spec)
    cls = _class(target)
    values = {name: parameter.default for name, parameter in _parameters(cls).items()}
    values |= _arguments(cls, words, target)
    return {name: value for name, value in values.items() if type(value) in (int, float)}


def with_arguments(spec: str, values: Mapping[str, int | float]) -> str:
    """Returns ``spec`` with some arguments changed or added."""
    target, words = _split(spec)
    kept = [word for word in words if word.partition("=")[0] not in values]
    return ",".join([target, *kept, *(f"{name}={value!r}" for name, value in values.items())])


def replaces_soft_targets(spec: str) -> bool:
    """Returns whether a plugin puts a loss of its own in the place of the term ``kd``.

    No data are needed: ``configure`` gets networks without layers. An error of it, such as that a layer is
    missing, is left to the dry run with the networks of the fit.

    Raises:
        UsageError: the plugin or an argument is unknown.
        KdtrainError: the plugin cannot be imported.
    """
    callbacks = CallbackList([load_plugin(spec)])
    network = flow.nn.Identity()
    objective = Objective.task().add("kd", cross_entropy).with_teacher(Teacher(network))
    try:
        terms = callbacks.configure(objective.with_student(Recorder(network, "student"))).terms
    except KdtrainError:
        return False
    return "kd" not in terms or terms["kd"].term is not cross_entropy


def list_plugins(*names: str) -> list[PluginInfo]:
    """Returns the installed plugins sorted by name, also those that cannot be loaded; or the named ones.

    Args:
        names: plugins as ``--plugin`` names them, ``NAME`` or ``FILE.py:CLASS``; by default all.

    Raises:
        UsageError: there is no plugin of a name.
        KdtrainError: a file cannot be imported.
    """
    points = {point.name: point for point in sorted(_entry_points(), key=lambda point: point.name)}
    return [
        _describe(points[name]) if name in points else _info(name, "file", _class(name))
        for name in names or points
    ]


def _split(spec: str) -> tuple[str, list[str]]:
    """Returns what names the class, and the words for its arguments."""
    start = len(source_file(spec))  # a path may have commas in it
    name, *words = spec[start:].split(",")
    return spec[:start] + name, words


def _class(target: str) -> type[Callback]:
    cls = _from_file(target) if ":" in target or target.endswith(".py") else _from_entry_point(target)
    if not _is_callback(cls):
        raise UsageError(f"--plugin {target}: it is not a subclass of kdtrain.Callback.")
    return cls


def _entry_points() -> tuple[importlib.metadata.EntryPoint, ...]:
    return tuple(importlib.metadata.entry_points(group=GROUP))


def _describe(point: importlib.metadata.EntryPoint) -> PluginInfo:
    distribution = point.dist.name if point.dist is not None else "unknown"
    source = f"{distribution} ({point.value})"
    try:
        cls = point.load()
    except (Exception, SystemExit) as error:
        return PluginInfo(point.name, source, f"cannot be loaded: {one_line(error)}")
    if not _is_callback(cls):
        return PluginInfo(point.name, source, "cannot be used: it is not a subclass of kdtrain.Callback")
    return _info(point.name, source, cls)


def _info(name: str, source: str, cls: type[Callback]) -> PluginInfo:
    parameters = _parameters(cls)
    arguments = ", ".join(str(parameter).replace("'", "") for parameter in parameters.values())
    hooks = tuple(h for h in ("configure", *HOOKS) if getattr(cls, h) is not getattr(Callback, h))
    docstring = inspect.cleandoc(cls.__doc__ or "")
    summary = docstring.partition("\n")[0]
    meanings = _section(docstring, "Args")
    options = tuple(
        PluginOption(key, None if p.default is p.empty else str(p.default), meanings.get(key, ""))
        for key, p in parameters.items()
    )
    card = _section(docstring, "Card")
    return PluginInfo(name, source, summary, arguments, hooks, _kind(cls), options, card)


def _section(docstring: str, heading: str) -> dict[str, str]:
    """Returns the texts of the lines ``name: text`` below a heading; further lines of one are indented."""
    paragraphs = (paragraph.partition("\n") for paragraph in docstring.split("\n\n"))
    bodies = [textwrap.dedent(body) for first, _, body in paragraphs if first == f"{heading}:"]
    lines = re.findall(r"^(\w+): (.*(?:\n .*)*)", "\n".join(bodies), re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in lines}


def _kind(cls: type[Callback]) -> str:
    if cls.configure is Callback.configure:
        return "observer"
    if not cls.needs_teacher:
        return "control"
    return "layers" if any("student_layer" in name for name in _parameters(cls)) else "soft targets"


def _from_entry_point(name: str) -> Any:
    points = {point.name: point for point in _entry_points()}
    if name not in points:
        raise UsageError(unknown_name_message("plugin", name, sorted(points)))
    try:
        return points[name].load()
    except (Exception, SystemExit) as error:
        raise import_failure(f"the plugin {name} ({points[name].value})", error) from error


def _from_file(target: str) -> Any:
    file, _, name = target.rpartition(":") if ":" in target else (target, "", "")
    path = Path(file)
    if not name:
        raise UsageError(f"--plugin {target}: say which class, as {path.name}:CLASS.")
    module = import_file(path, "plugin", f"--plugin {target}")
    if not hasattr(module, name):
        callbacks = {key: value for key, value in vars(module).items() if _is_callback(value)}
        defined = [key for key, value in callbacks.items() if value.__module__ == module.__name__]
        raise UsageError(f"--plugin {path}: {unknown_name_message('callback class', name, defined)}")
    return getattr(module, name)


def _is_callback(value: object) -> TypeGuard[type[Callback]]:
    return inspect.isclass(value) and issubclass(value, Callback)


def _parameters(cls: type[Callback]) -> dict[str, inspect.Parameter]:
    """Returns the keyword arguments of the constructor."""
    if cls.__init__ is object.__init__:
        return {}
    parameters = inspect.signature(cls).parameters
    return {k: p for k, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}


def _hints(cls: type[Callback], target: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(cls.__init__)
    except Exception as error:  # such as a NameError: the name is imported for type checkers only
        raise UsageError(
            f"--plugin {target}: the types of its arguments are unknown: {one_line(error)}."
        ) from error


def _arguments(cls: type[Callback], words: list[str], target: str) -> dict[str, Any]:
    """Returns ``key=value`` words as arguments, converted to the types of the constructor's signature."""
    parameters = _parameters(cls)
    hints = _hints(cls, target) if words else {}
    arguments: dict[str, Any] = {}
    for word in words:
        key, equals, text = word.partition("=")
        if not equals:
            raise UsageError(f"--plugin {target}: {word!r} should be key=value.")
        if key not in parameters:
            raise UsageError(f"--plugin {target}: {unknown_name_message('argument', key, parameters)}")
        if key in arguments:
            raise UsageError(f"--plugin {target}: {key} is given twice.")
        default = parameters[key].default
        kind = str if default is None or default is inspect.Parameter.empty else type(default)
        arguments[key] = _value(text, hints.get(key, kind), f"--plugin {target}: {key}={text}")
    missing = [k for k, p in parameters.items() if p.default is p.empty and k not in arguments]
    if missing:
        raise UsageError(f"--plugin {target}: it needs {', '.join(f'{name}=…' for name in missing)}.")
    return arguments


def _value(text: str, hint: Any, where: str) -> Any:
    """Returns ``text`` converted to the first possible type of ``hint``."""
    kinds = (
        typing.get_args(hint)
        if isinstance(hint, UnionType) or typing.get_origin(hint) is typing.Union
        else (hint,)
    )
    if type(None) in kinds and text.lower() == "none":
        return None
    for kind in kinds:
        if kind is bool:
            if text.lower() in ("true", "false"):
                return text.lower() == "true"
            continue
        if typing.get_origin(kind) is typing.Literal:
            if text in typing.get_args(kind):
                return text
            continue
        if kind in (int, float, str, Path):
            try:
                return kind(text)
            except ValueError:
                continue
    names = " or ".join(getattr(kind, "__name__", str(kind)) for kind in kinds if kind is not type(None))
    raise UsageError(f"{where} is not of type {names}.")
