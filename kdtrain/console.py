"""What people see while kdtrain works: notes and progress bars, all on stderr.

stdout is for answers.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def note(message: str) -> None:
    """Prints a line, above a progress bar if there is one."""
    tqdm.write(message, file=sys.stderr)


def progress_bar(description: str, total: int, unit: str) -> tqdm[None]:
    """Returns a bar that vanishes when it is closed, and is not drawn at all without a terminal."""
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        leave=False,
        file=sys.stderr,
        disable=None,
        dynamic_ncols=True,
    )


def watched(items: Iterable[T], description: str, total: int, unit: str) -> Iterator[T]:
    """Yields ``items`` while a bar counts them."""
    with progress_bar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.update()
