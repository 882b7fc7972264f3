"""The declaration of one setting: its default, its check, its flag and its place in the help."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from kdtrain.data.augment_spec import AUGMENT_FORMS, parse_augment
from kdtrain.runtime.limits import LONGEST_NAME
from kdtrain.runtime.value_checks import Check

GROUPS = ("what to train", "teacher", "data", "augmentation", "training", "comparison", "output")
"""The headings of the help, in their order."""

AUGMENTATION: Check = (
    lambda value: parse_augment(value) is not None,
    f"must be none, or some of {AUGMENT_FORMS}, each once",
)

LABELS: Check = (
    lambda value: (
        re.fullmatch(r"[1-9]\d{0,8}|(?:[1-9]\d?|0)(?:\.\d{1,6})?%", value) is not None
        and value.strip("0.%") != ""
    ),
    "must be a whole number above 0, such as 1000, or a percentage below 100, such as 1%",
)
"""The check of a number of labels."""

CLASSES: Check = (
    lambda value: value.endswith(".json") or max(map(len, value.split(","))) <= LONGEST_NAME,
    f"must have names of at most {LONGEST_NAME} characters, or numbers",
)
"""The check of a teacher's classes."""

RUN_NAME: Check = (
    lambda value: re.fullmatch(r"(?!version_\d)[^\W_][\w.+=,@-]{0,59}", value) is not None,
    "must begin with a letter or digit, go on with these or . _ - + = , @, have at most 60 characters, and "
    "not be a version_N",
)
"""The check of a run's name, which is one part of a path."""


def _setting(
    default: Any,
    help: str,
    *,
    group: str,
    is_common: bool = False,
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
        help: the help text of its flag. Its parts are divided by semicolons: the short help has the first.
            Where no value is a default, the text ends with what is done instead, in brackets.
        group: the heading that the help shows its flag under.
        is_common: whether the short help shows it.
        choices: the values that are allowed; any by default.
        check: the check of its value.
        metavar: the name of its value in the help.
        aliases: further spellings of its flag, hidden in the help.
        shorthands: flags that stand for one value each, with that value.
        max_values: how many values a setting that can be repeated may have.
    """
    allowed = {"choices": choices, "check": check, "max_values": max_values}
    flag = {"metavar": metavar, "aliases": aliases, "shorthands": shorthands}
    shown = {"help": help, "group": group, "is_common": is_common}
    return dataclasses.field(default=default, metadata=allowed | flag | shown)


network_setting = partial(_setting, group="what to train")
teacher_setting = partial(_setting, group="teacher")
data_setting = partial(_setting, group="data")
augmentation_setting = partial(_setting, group="augmentation")
training_setting = partial(_setting, group="training")
comparison_setting = partial(_setting, group="comparison")
output_setting = partial(_setting, group="output")
