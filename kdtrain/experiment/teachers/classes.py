"""The match of a teacher's classes with those of the data."""

from __future__ import annotations

import csv
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kdtrain.errors import CheckpointError, UsageError, clipped, listed, os_reason, unknown_name_message
from kdtrain.runtime.regular_files import read_text

logger = logging.getLogger(__name__)

_LARGEST = 1 << 20  # bytes of a mapping; 4,096 classes with long names take less
_LISTED = 5  # names in a message

Names = Sequence[str]


def match_classes(
    wanted: Names, names: Names | None, number: int, asked: str | None, teacher: str
) -> tuple[int, ...] | None:
    """Returns the teacher's class for each class of the data; None if they are the same in the same order.

    Without ``asked``, classes are matched by their names where both sides have names. They are matched by
    their position if no name is on both sides. What does not match is logged.

    Args:
        wanted: the names of the data's classes.
        names: the names of the teacher's classes; None if its file has none.
        number: the number of the teacher's classes.
        asked: value of --teacher-classes: a class for each of ``wanted``, or a JSON file with such a mapping
            or with the teacher's own names.
        teacher: names the teacher in messages.

    Raises:
        UsageError: --teacher-classes names other classes than there are.
        CheckpointError: the classes do not match; the text lists those that do not.
    """
    given = None if asked is None else _read_json(asked)
    if isinstance(given, list):
        names = _own_names(given, number, teacher)
    elif asked is not None:
        chosen = _asked_classes(wanted, names, number, asked, given)
        logger.info(f"{teacher}: {len(set(chosen))} of its {number} classes teach.")
        return chosen
    if names is not None and list(names) == list(wanted):
        return None
    if names is not None and set(wanted) <= set(names):
        others = [name for name in names if name not in wanted]
        rest = f"; the data have no {_listed(others)}" if others else ""
        logger.info(f"{teacher}: its classes are matched to those of the data by name{rest}.")
        return tuple(list(names).index(name) for name in wanted)
    shared = [name for name in wanted if name in (names or ())]
    if number == len(wanted) and not shared:
        if names is not None and not _are_numbers(names) and not _are_numbers(wanted):
            pairs = [f"{name} for {own}" for own, name in zip(wanted, names, strict=True) if own != name]
            logger.info(f"{teacher}: its classes are matched by position: it has {_listed(pairs)}.")
        return None
    missing = [name for name in wanted if name not in shared]
    reason = "its file does not name them" if names is None else f"it has no {_listed(missing)}"
    if shared:
        reason += f", but {_listed(shared)}"
    raise CheckpointError(
        f"{teacher} has {number} classes, the data have {len(wanted)}, and {reason}. "
        "Say with --teacher-classes which of its classes belongs to each of the data's."
    )


def needs_classes(wanted: Names, names: Names | None) -> bool:
    """Returns whether --teacher-classes is for a teacher: its own names lack a class of the data."""
    return names is None or not set(wanted) <= set(names)


def _asked_classes(
    wanted: Names, names: Names | None, number: int, asked: str, mapping: Mapping[str, Any] | None
) -> tuple[int, ...]:
    """Returns the teacher's class for each class of the data, as --teacher-classes has it."""
    if mapping is not None:
        for name in mapping:
            if name not in wanted:
                raise UsageError(
                    f"--teacher-classes {clipped(asked)}: {unknown_name_message('class', name, wanted)}"
                )
        missing = [name for name in wanted if name not in mapping]
        if missing:
            raise UsageError(f"--teacher-classes {clipped(asked)} has no entry for {_listed(missing)}.")
        entries = [str(mapping[name]) for name in wanted]
    else:
        entries = _listed_entries(asked)
        if len(entries) != len(wanted):
            raise UsageError(
                f"--teacher-classes has {len(entries)} classes, and the data have {len(wanted)}: give one "
                f"for each of {_listed(wanted)}, in this order."
            )
    return tuple(_class_number(entry, names, number) for entry in entries)


def _class_number(entry: str, names: Names | None, number: int) -> int:
    """Returns the position of a class that is given by name or by number."""
    if names is not None and entry in names:
        return list(names).index(entry)
    if entry.isdecimal() and len(entry) < 10 and int(entry) < number:  # Python reads at most 4,300 digits
        return int(entry)
    if names is None:
        raise UsageError(
            f"--teacher-classes: {clipped(entry, repr)} is no class of the teacher. Its file has no names: "
            f"give numbers from 0 to {number - 1}."
        )
    raise UsageError(f"--teacher-classes: {unknown_name_message('class of the teacher', entry, names)}")


def _listed_entries(asked: str) -> list[str]:
    """Returns the entries of a text, divided by commas; an entry with a comma is in double quotes."""
    try:
        return [entry.strip() for entry in next(csv.reader([asked], skipinitialspace=True), [])]
    except csv.Error as error:
        raise UsageError(f"--teacher-classes {clipped(asked, repr)} cannot be read: {error}.") from error


def _own_names(names: list[str], number: int, teacher: str) -> list[str]:
    """Returns the teacher's names in a JSON list; raises UsageError if they are not one for each class."""
    if len(names) != number or len(set(names)) != number:
        raise UsageError(
            f"--teacher-classes: the list has {len(names)} names, {len(set(names))} of them different, and "
            f"{teacher} has {number} classes: give the name of each, in the order of its outputs."
        )
    return names


def _read_json(asked: str) -> dict[str, str | int] | list[str] | None:
    """Returns the value of a JSON file, or of a text that is an object; None for another text.

    An object maps the data's names to the teacher's names or numbers; a list holds the teacher's own names.
    """
    if not asked.endswith(".json") and not asked.startswith("{"):
        return None
    try:
        value = json.loads(asked if asked.startswith("{") else read_text(Path(asked), _LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"--teacher-classes {clipped(asked)} cannot be read: {os_reason(error)}.") from error
    if isinstance(value, list) and all(type(name) is str for name in value):
        return value
    if not isinstance(value, dict) or not all(type(entry) in (str, int) for entry in value.values()):
        raise UsageError(
            f"--teacher-classes {clipped(asked)}: it must be an object of names or numbers, such as "
            '{"cat": "tabby"}, or a list of the names of all the teacher\'s classes.'
        )
    return value


def _are_numbers(names: Names) -> bool:
    """Returns whether names are the numbers of the classes, which name nothing."""
    return list(names) == [str(number) for number in range(len(names))]


def _listed(names: Names) -> str:
    return listed([clipped(name) for name in names], _LISTED)
