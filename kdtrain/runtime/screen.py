"""The progress bars of parallel jobs on one terminal: children count in shared memory, the parent draws.

In a notebook the parent draws as well: only the kernel itself can replace an output.
A child never writes to the terminal while its parent draws there, and never waits for it: it stores numbers.
Its log messages go through the pipe of its result, and the parent prints them above the bars.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import sys
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from tqdm import tqdm
from tqdm.utils import disp_trim

from kdtrain.runtime.locations import with_commands

_N, _TOTAL, _STARTED, _IS_SHOWN, _IS_CLAIMED, _IS_GRANTED = range(6)  # float64 numbers at the beginning
_TEXTS = {"description": (64, 128), "unit": (192, 32), "postfix": (224, 64)}  # offset, bytes
_SIZE = 288
_CLAIM_SECONDS = 1.0  # for the parent to leave the terminal

_INDENTED = re.compile(r" *(?:\S{1,12}  +)?")
_UNBROKEN = "\0"  # stands for a space at which no line is broken

BAR_FORMAT = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"
"""The format of tqdm's bars: without count and rate, so that 80 columns have room for loss and accuracy."""


class Bar(Protocol):
    """A progress bar: tqdm's, or one that the parent process draws."""

    total: float | None
    disable: bool

    def update(self, n: float = 1) -> object:
        """Counts ``n`` more."""

    def refresh(self) -> object:
        """Shows a changed total."""

    def set_description_str(self, desc: str | None = None, refresh: bool | None = True) -> object:
        """Sets the text at the beginning."""

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> object:
        """Sets the text at the end."""

    def close(self) -> object:
        """Removes the bar."""


class SharedBar:
    """The bar of one job, in memory that its process and the parent share."""

    def __init__(self) -> None:
        self._memory = memoryview(mmap.mmap(-1, _SIZE))
        self._numbers = self._memory[:64].cast("d")

    def show(self, description: str, total: float, unit: str) -> None:
        """Shows a new bar, in the place of the one before."""
        self._numbers[_IS_SHOWN] = 0
        self.write("description", description)
        self.write("unit", unit)
        self.write("postfix", "")
        self._numbers[_N], self._numbers[_TOTAL] = 0, total
        self._numbers[_STARTED] = time.monotonic()
        self._numbers[_IS_SHOWN] = 1

    def hide(self) -> None:
        """Removes the bar."""
        self._numbers[_IS_SHOWN] = 0

    def add(self, n: float) -> None:
        """Counts ``n`` more."""
        self._numbers[_N] += n

    def set_total(self, total: float) -> None:
        """Changes the total."""
        self._numbers[_TOTAL] = total

    def write(self, field: str, text: str) -> None:
        """Writes a text, cut to its room."""
        offset, size = _TEXTS[field]
        self._memory[offset : offset + size] = text.encode(errors="replace")[:size].ljust(size, b"\0")

    def claim(self) -> bool:
        """Makes the parent leave the terminal to this process; returns False if it does not."""
        self._numbers[_IS_CLAIMED] = 1
        deadline = time.monotonic() + _CLAIM_SECONDS
        while not self._numbers[_IS_GRANTED] and time.monotonic() < deadline:
            time.sleep(0.01)
        self._numbers[_IS_CLAIMED] = self._numbers[_IS_GRANTED]
        return bool(self._numbers[_IS_GRANTED])

    @property
    def is_claimed(self) -> bool:
        """Whether the process wants to draw by itself."""
        return bool(self._numbers[_IS_CLAIMED])

    def grant(self) -> None:
        """Leaves the terminal to the process."""
        self._numbers[_IS_GRANTED] = 1

    def line(self, columns: int) -> str:
        """Returns the bar as text of at most ``columns``; empty if there is none."""
        if not self._numbers[_IS_SHOWN]:
            return ""
        meter: str = tqdm.format_meter(
            int(self._numbers[_N]),
            int(self._numbers[_TOTAL]),
            time.monotonic() - self._numbers[_STARTED],
            ncols=columns,
            prefix=self._text("description"),
            unit=self._text("unit"),
            postfix=self._text("postfix") or None,
            bar_format=BAR_FORMAT,
            ascii="utf" not in (sys.stderr.encoding or "").lower(),
        )
        return meter

    def _text(self, field: str) -> str:
        offset, size = _TEXTS[field]
        text = bytes(self._memory[offset : offset + size]).rstrip(b"\0").decode(errors="replace")
        return "".join(letter if letter.isprintable() else "?" for letter in text)


class ChildBar:
    """A bar that a job moves and its parent draws."""

    disable = False

    def __init__(self, shared: SharedBar, description: str, total: float, unit: str) -> None:
        self._shared = shared
        self.total: float | None = total
        shared.show(description, total, unit)

    def update(self, n: float = 1) -> None:
        """Counts ``n`` more."""
        self._shared.add(n)

    def refresh(self) -> None:
        """Shows a changed total."""
        self._shared.set_total(self.total or 0)

    def set_description_str(self, desc: str | None = None, refresh: bool | None = True) -> None:
        """Sets the text at the beginning."""
        self._shared.write("description", desc or "")

    def set_postfix_str(self, s: str = "", refresh: bool = True) -> None:
        """Sets the text at the end."""
        self._shared.write("postfix", s)

    def close(self) -> None:
        """Removes the bar."""
        self._shared.hide()


@dataclass
class Screen:
    """Lines at the bottom of a terminal, which the messages of a command scroll past.

    The cursor stands at the beginning of the first line. So whatever another program prints overwrites the
    lines, and the next drawing removes the rest of them.
    """

    seconds: ClassVar[float] = 0.2  # between two drawings
    _is_drawn: bool = False

    def columns(self) -> int:
        """Returns the width of the terminal."""
        return terminal_size()[0]

    def draw(self, lines: Sequence[str]) -> None:
        """Draws the lines in the place of those before; a terminal that has gone away is no error."""
        columns, rows = terminal_size()
        shown = [disp_trim(line, columns - 1) for line in lines]
        if len(shown) > rows - 1:  # the last line, with the time left, stays
            shown = [
                *shown[: max(0, rows - 3)],
                f"... and {len(shown) - max(0, rows - 3) - 1} more",
                shown[-1],
            ]
        if shown:
            up = f"\x1b[{len(shown) - 1}A" if len(shown) > 1 else ""
            self._write("\r\x1b[J" + "\n".join(shown) + up + "\r")
            self._is_drawn = True
        else:
            self.clear()

    def clear(self) -> None:
        """Removes the lines."""
        if self._is_drawn:
            self._write("\r\x1b[J")
            self._is_drawn = False

    def close(self) -> None:
        """Removes the lines for good."""
        self.clear()

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


class NotebookScreen:
    """An output of a notebook's cell that is replaced by each drawing, and empty in the end.

    The bars of a cell share one output. Of lines with carriage returns the file would keep every drawing.
    """

    seconds: ClassVar[float] = 0.5  # each drawing goes through the kernel to a browser
    _cell: ClassVar[int | None] = None
    _output: ClassVar[Any] = None  # IPython's handle of that cell's output

    def __init__(self) -> None:
        self._text = ""

    def columns(self) -> int:
        """Returns the width of the lines."""
        return 80

    def draw(self, lines: Sequence[str]) -> None:
        """Draws the lines in the place of those before."""
        from IPython.core.display_functions import display
        from IPython.core.getipython import get_ipython

        text = "\n".join(lines)
        if text == self._text:
            return
        self._text = text
        data = {"text/plain": text}
        cell = get_ipython().execution_count  # type: ignore[no-untyped-call]
        if NotebookScreen._cell != cell:
            NotebookScreen._cell = cell
            NotebookScreen._output = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            NotebookScreen._output.update(data, raw=True)

    def clear(self) -> None:
        """Leaves the lines where they are: messages are another output of the cell."""

    def close(self) -> None:
        """Removes the lines for good."""
        self.draw([])


AnyScreen = Screen | NotebookScreen


def wrapped(text: str, columns: int) -> str:
    """Returns a message with its lines broken between words, but not within commands, and indented.

    Commands begin as the user began. Names of files and flags stay whole. What follows the first column of
    a table is indented as the second.
    """
    lines = []
    for line in with_commands(text, _UNBROKEN).split("\n"):
        indent = re.sub(r"\S", " ", _INDENTED.findall(line)[0])
        first = line[: len(line) - len(line.lstrip())]
        fill = textwrap.TextWrapper(columns, first, indent, break_long_words=False, break_on_hyphens=False)
        lines.append(fill.fill(line.lstrip()))
    return "\n".join(lines).replace(_UNBROKEN, " ")


def terminal_size() -> tuple[int, int]:
    """Returns columns and rows of the terminal of stderr, 80 and 24 if they are unknown."""
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        columns = rows = 0
    return columns or 80, rows or 24
