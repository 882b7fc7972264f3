"""The signatures in docs/api.md: each ``py`` block there is written from the code."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from functools import cached_property
from pathlib import Path
from typing import Any

import kdtrain

PAGE = Path(__file__).resolve().parents[1] / "docs" / "api.md"
_BLOCK = re.compile(r"^```py\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_WIDTH = 100
_STARS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}


def with_signatures(text: str) -> str:
    """Returns the page with every ``py`` block written anew.

    A line of such a block that begins with ``NAME(`` shows how a function or a constructor is called; a line
    ``class NAME`` shows what an object has. The other lines are made from these.

    Args:
        text: the page.
    """
    return _BLOCK.sub(lambda match: f"```py\n{_written(match[1])}```", text)


def names_in(text: str) -> list[str]:
    """Returns the public names whose signatures the page shows."""
    return [name for block in _BLOCK.findall(text) for name, _ in _entries(block)]


def _entries(block: str) -> list[tuple[str, bool]]:
    """Returns the names in a block, and whether the attributes of each are shown."""
    found = re.findall(r"^(class )?(\w+)\b", block, re.MULTILINE)
    return [(name, bool(is_class)) for is_class, name in found if hasattr(kdtrain, name)]


def _written(block: str) -> str:
    return "".join(
        _attributes(name) if is_class else f"{_call(name, getattr(kdtrain, name))}\n"
        for name, is_class in _entries(block)
    )


def _call(name: str, function: Any, indent: str = "") -> str:
    signature = inspect.signature(function)
    words, starred = [], False
    for parameter in signature.parameters.values():
        starred = starred or parameter.kind is parameter.VAR_POSITIONAL
        if parameter.kind is parameter.KEYWORD_ONLY and not starred:
            words.append("*")
            starred = True
        if parameter.name != "self":
            words.append(_parameter(parameter))
    returned = "" if inspect.isclass(function) else f" -> {_type(signature.return_annotation)}"
    line = f"{indent}{name}({', '.join(words)}){returned}"
    if len(line) <= _WIDTH:
        return line
    return "\n".join(
        [f"{indent}{name}(", *(f"{indent}    {word}," for word in words), f"{indent}){returned}"]
    )


def _parameter(parameter: inspect.Parameter) -> str:
    text = f"{_STARS.get(parameter.kind, '')}{parameter.name}: {_type(parameter.annotation)}"
    default = parameter.default
    if default is parameter.empty:
        return text
    return f"{text} = {json.dumps(default) if isinstance(default, str) else _plain(default)}"


def _plain(default: Any) -> str:
    """Returns a default as code; a path as a text, which the settings take as well."""
    return json.dumps(str(default)) if isinstance(default, Path) else repr(default)


def _type(annotation: Any) -> str:
    return annotation if isinstance(annotation, str) else getattr(annotation, "__name__", str(annotation))


def _attributes(name: str) -> str:
    """Returns what an object has: fields, properties and methods, without those of the underscore."""
    cls = getattr(kdtrain, name)
    lines = [f"class {name}"]
    lines += [f"    {field.name}: {_type(field.type)}" for field in dataclasses.fields(cls)]
    members = {key: value for base in reversed(cls.__mro__) for key, value in vars(base).items()}
    for key, value in members.items():
        if key.startswith("_"):
            continue
        if isinstance(value, (property, cached_property)):
            getter: Any = value.fget if isinstance(value, property) else value.func
            lines.append(f"    {key}: {_type(inspect.signature(getter).return_annotation)}")
        elif inspect.isfunction(value):
            lines.append(_call(key, value, "    "))
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(with_signatures(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
