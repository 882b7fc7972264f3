"""The declaration of one setting: its default, its check and its flag."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from kdtrain.runtime.value_checks import Check


def setting(
    default: Any,
    help: str,
    *,
    choices: tuple[str, ...] = (),
    check: Check | None = None,
    metavar: str | None = None,
    aliases: tuple[str, ...] = (),
    shorthands: Mapping[str, str] | None = None,
    max_values: int = 100,
) -> Any:
    """Declares one setting.

    Args:
        default: its default.
        help: the help text of its flag.
        choices: the values that are allowed; any by default.
        check: the check of its value.
        metavar: the name of its value in the help.
        aliases: further spellings of its flag, hidden in the help.
        shorthands: flags that stand for one value each, with that value.
        max_values: how many values a setting that can be repeated may have.
    """
    allowed = {"choices": choices, "check": check, "max_values": max_values}
    flag = {"help": help, "metavar": metavar, "aliases": aliases, "shorthands": shorthands}
    return dataclasses.field(default=default, metadata=allowed | flag)
