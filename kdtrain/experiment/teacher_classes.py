"""The match of a teacher's classes with those of the data."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from kdtrain.errors import CheckpointError, UsageError, clipped, unknown_name_message
from kdtrain.runtime.regular_files import read_text

logger = logging.getLogger(__name__)

_LARGEST = 1 << 20  # bytes of a mapping; 4,096 classes with long names take less
_LISTED = 5  # names in a message

Names = Sequence[str]


def match_classes(
    wanted: Names, names: Names | None, number: int, asked: str | None, teacher: str
) -> tuple[int, ...] | None:
    """Returns the teacher's class for each class of the data; None if they are the same in the same order.

    Without ``asked``, classes are matched by their names where both sides have names, and otherwise by their
    position. What does not match is logged.

    Args:
        wanted: the names of the data's classes.
        names: the names of the teacher's classes; None if its file has none.
        number: the number of the teacher's classes.
        asked: value of --teacher-classes.
        teacher: names the teacher in messages.

    Raises:
        UsageError: --teacher-classes names other classes than there are.
        CheckpointError: the classes do not match; the text lists those that do not.
    """
    if asked is not None:
        chosen = _asked_classes(wanted, names, number, asked)
        logger.info(f"{teacher}: {len(set(chosen))} of its {number} classes teach.")
        return chosen
    if names is not None and list(names) == list(wanted):
        return None
    if names is not None and set(wanted) <= set(names):
        others = [name for name in names if name not in wanted]
        rest = f"; the data have no {_listed(others)}" if others else ""
        logger.info(f"{teacher}: its classes are matched to those of the data by name{rest}.")
        return tuple(list(names).index(name) for name in wanted)
    if number == len(wanted):
        if names is not None and not _are_numbers(names) and not _are_numbers(wanted):
            pairs = [f"{name} for {own}" for own, name in zip(wanted, names, strict=True) if own != name]
            logger.info(f"{teacher}: its classes are matched by position: it has {_listed(pairs)}.")
        return None
    missing = [name for name in wanted if name not in (names or ())]
    reason = "its file does not name them" if names is None else f"it has no {_listed(missing)}"
    raise CheckpointError(
        f"{teacher} has {number} classes, the data have {len(wanted)}, and {reason}. "
        "Say with --teacher-classes which of its classes answers to each of the data's."
    )


def _asked_classes(wanted: Names, names: Names | None, number: int, asked: str) -> tuple[int, ...]:
    """Returns the teacher's class for each class of the data, as --teacher-classes has it."""
    if asked.endswith(".json"):
        mapping = _read_mapping(Path(asked))
        for name in mapping:
            if name not in wanted:
                raise UsageError(f"--teacher-classes {asked}: {unknown_name_message('class', name, wanted)}")
        missing = [name for name in wanted if name not in mapping]
        if missing:
            raise UsageError(f"--teacher-classes {asked} has no entry for {_listed(missing)}.")
        entries = [mapping[name] for name in wanted]
    else:
        entries = [entry.strip() for entry in asked.split(",")]
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


def _read_mapping(file: Path) -> Mapping[str, str]:
    """Returns the mapping in a JSON file, from the data's names to the teacher's names or numbers."""
    try:
        mapping = json.loads(read_text(file, _LARGEST))
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--teacher-classes {file} cannot be read: {reason}.") from error
    if not isinstance(mapping, dict) or not all(type(value) in (str, int) for value in mapping.values()):
        raise UsageError(
            f'--teacher-classes {file}: it must be an object of names or numbers, such as {{"cat": "tabby"}}.'
        )
    return {name: str(value) for name, value in mapping.items()}


def _are_numbers(names: Names) -> bool:
    """Returns whether names are the numbers of the classes, which name nothing."""
    return list(names) == [str(number) for number in range(len(names))]


def _listed(names: Names) -> str:
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(map(clipped, names[:_LISTED])) + more
