"""What people see while kdtrain works: notes and progress bars, all on stderr.

stdout is for answers.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_ERASE_TO_END_OF_LINE = "\x1b[K"
_row = 0
_quiet = False


def enter_child(row: int, *, quiet: bool) -> None:
    """Makes this forked process draw its bars in a row of its own, or draw and say nothing at all."""
    global _row, _quiet
    _row, _quiet = row, quiet
    # tqdm's own lock spans processes: one that is killed while it draws would stop all the others.
    tqdm.set_lock(threading.RLock())


def note(message: str) -> None:
    """Prints a line, above the progress bars if there are any."""
    if _quiet:
        return
    if sys.stderr.isatty():
        message += _ERASE_TO_END_OF_LINE  # what was there may be another process's bar
    tqdm.write(message, file=sys.stderr)


def progress_bar(description: str, total: int, unit: str) -> tqdm[None]:
    """Returns a bar that vanishes when it is closed, and is not drawn at all without a terminal."""
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        leave=False,
        file=sys.stderr,
        disable=_quiet or None,
        dynamic_ncols=True,
        position=_row or None,
    )


def watched(items: Iterable[T], description: str, total: int, unit: str) -> Iterator[T]:
    """Yields ``items`` while a bar counts them."""
    with progress_bar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.update()
