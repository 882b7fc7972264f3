"""Progress bars on stderr. Jobs count in memory that they share with their parent, which alone draws.

``tqdm`` formats the bars and estimates the time left. All are drawn at once: a row per running job, and one
for the epochs of all jobs. A child never waits for its parent: it stores figures. Without a terminal or a
notebook, a bar that takes long is a message now and then.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from tqdm import tqdm
from tqdm.utils import disp_trim

logger = logging.getLogger(__name__)

_TRAINED, _SKIPPED, _CLAIMED, _GRANTED = range(4)  # float64 numbers at the beginning of a job's memory
_CLAIM_SECONDS = 1.0  # for the parent to leave the terminal

_FORMAT = "{l_bar}{bar}| {elapsed}<{remaining}{postfix}"  # 80 columns have room for loss and accuracy
_COMMAND = "all epochs {n_fmt}/{total_fmt}: {percentage:3.0f}%|{bar}| {elapsed}, {remaining} left"
_MESSAGE = "{desc}: {n_fmt} of {total_fmt} ({percentage:.0f} %), {remaining} left"
_MESSAGE_SECONDS = 20.0

tqdm.set_lock(threading.RLock())  # its own spans processes: if the holder is killed, all others wait for ever


class JobRow:
    """The figures of a job's bar and its epochs, in memory that its process shares with the parent.

    Args:
        name: what is shown while the job has no bar.
        is_claimable: whether the job may take the terminal from the parent.
    """

    def __init__(self, name: str, *, is_claimable: bool) -> None:
        self.is_claimable = is_claimable
        memory = memoryview(mmap.mmap(-1, mmap.PAGESIZE))
        self.numbers, self._figures = memory[:32].cast("d"), memory[32:]
        self._line = self._name = f"{name} ..."

    def write(self, figures: dict[str, Any] | None) -> None:
        """Stores the arguments of ``tqdm.format_meter``; None removes the bar."""
        if figures is not None:
            figures["elapsed"] -= time.time()  # the clock goes on meanwhile
        text = json.dumps(figures).encode() + b"\0"
        self._figures[: len(text)] = text

    def __str__(self) -> str:
        """Returns the bar, or the name of the job."""
        with contextlib.suppress(ValueError):  # the job is writing now, or has written nothing yet
            figures = json.loads(bytes(self._figures).partition(b"\0")[0])
            if figures is not None:
                figures["elapsed"] += time.time()
            self._line = self._name if figures is None else _bar_line(figures)
        return self._line

    def claim(self) -> bool:
        """Makes the parent leave the terminal to this process; returns False if it does not."""
        self.numbers[_CLAIMED] = self.is_claimable
        deadline = time.monotonic() + _CLAIM_SECONDS * self.is_claimable
        while not self.numbers[_GRANTED] and time.monotonic() < deadline:
            time.sleep(0.01)
        self.numbers[_CLAIMED] = self.numbers[_GRANTED]
        return bool(self.numbers[_GRANTED])


class Bar(tqdm):
    """A bar of this process, which is erased when it is closed."""

    monitor_interval = 0  # without tqdm's thread: a fork copies the locks that a thread holds

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draws the bar, leaves it to the parent, or prints a message. tqdm writes nothing after it."""
        is_open = msg is None
        if screen.parent_row is not None:
            screen.parent_row.write(self.format_dict if is_open else None)
        elif is_redrawn():
            if is_open:
                screen.rows[self] = None
            else:
                screen.rows.pop(self, None)
            screen.draw()
        elif is_open and self.n:
            logger.info(tqdm.format_meter(**{**self.format_dict, "bar_format": _MESSAGE, "ncols": None}))
        return False

    def __str__(self) -> str:
        """Returns the bar for the width of the screen."""
        return _bar_line(self.format_dict)


class _CommandBar(Bar):
    """The bar over the epochs of all jobs of a command, drawn with the others.

    Attributes:
        epochs: their number; 0 if nobody has told it.
        trained: epochs that ended jobs have trained.
        skipped: epochs that ended jobs have not trained, because a fit was resumed or stopped.
    """

    epochs = trained = skipped = 0

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draws nothing."""
        return False

    def count(self, running: Sequence[JobRow]) -> None:
        """Counts the epochs of the jobs that have ended, and of those that run."""
        trained = self.trained + int(sum(row.numbers[_TRAINED] for row in running))
        self.total = self.epochs - self.skipped - int(sum(row.numbers[_SKIPPED] for row in running))
        if trained > self.n:
            self.update(trained - self.n)


class Screen:
    """The bars of a process: the last lines of a terminal, or an output of a notebook's cell.

    On a terminal the cursor stands at the beginning of the first line. So whatever another program prints
    overwrites the lines, and the next drawing removes the rest of them.

    Attributes:
        rows: the bars of this process and the jobs that it runs, in order.
        command: the bar over the epochs of all jobs, if there are several jobs.
        parent_row: in a child whose parent draws, its row there.
        is_forced: whether bars are shown; None if they are shown with messages of the level INFO.
    """

    def __init__(self) -> None:
        self.rows: dict[Bar | JobRow, None] = {}
        self.command: _CommandBar | None = None
        self.parent_row: JobRow | None = None
        self.is_forced: bool | None = None
        self._drawn = 0.0  # value of time.monotonic()
        self._text = ""
        self._cell: int | None = None
        self._output: Any = None  # IPython's handle of that cell's output

    def begin_job(self, name: str, *, is_claimable: bool) -> JobRow | None:
        """Returns a new row for a job; None if no bars are drawn."""
        if not are_drawn():
            return None
        row = JobRow(name, is_claimable=is_claimable)
        self.rows[row] = None
        return row

    def end_job(self, row: JobRow | None) -> None:
        """Removes a job's row, and keeps the number of its epochs."""
        if row is not None:
            del self.rows[row]
            count_epochs(trained=int(row.numbers[_TRAINED]), skipped=int(row.numbers[_SKIPPED]))

    def refresh(self) -> None:
        """Draws all rows if the last drawing is long enough ago."""
        if self.rows and time.monotonic() >= self._drawn + seconds():
            self.draw()

    def draw(self) -> None:
        """Draws all rows in the place of those before, or leaves the terminal to the job that claims it."""
        self._drawn = time.monotonic()
        jobs = [row for row in self.rows if isinstance(row, JobRow)]
        if any(row.numbers[_CLAIMED] for row in jobs):  # it runs alone
            self.erase()
            jobs[0].numbers[_GRANTED] = 1
            return
        lines = [str(row) for row in self.rows]
        if lines and self.command is not None and self.command.epochs:
            self.command.count(jobs)
            lines.append(str(self.command))
        if _is_notebook():
            self._replace_output("\n".join(lines))
        elif not lines:
            self.erase()
        else:
            most = max(2, terminal_size()[1] - 1)
            if len(lines) > most:  # the last line stays
                lines[most - 2 : -1] = [f"... and {len(lines) - most + 1} more"]
            self._text = "\n".join(lines)
            up = f"\x1b[{len(lines) - 1}A" if len(lines) > 1 else ""
            self._write(f"\r\x1b[J{self._text}{up}\r")

    def erase(self) -> None:
        """Erases the lines until the next drawing. In a notebook messages are another output."""
        if self._text and not _is_notebook():
            self._text = ""
            self._write("\r\x1b[J")

    def clear(self) -> None:
        """Removes all rows."""
        self.rows.clear()
        self.draw()

    def _write(self, text: str) -> None:
        with contextlib.suppress(OSError):  # a terminal that has gone away is no error
            sys.stderr.write(text)
            sys.stderr.flush()

    def _replace_output(self, text: str) -> None:
        """Replaces the output that a cell's bars share. Its file would keep each drawing of lines."""
        from IPython.core.display_functions import display
        from IPython.core.getipython import get_ipython

        if text == self._text:
            return
        self._text = text
        data = {"text/plain": text}
        cell = get_ipython().execution_count  # type: ignore[no-untyped-call]
        if self._cell != cell:
            self._cell = cell
            self._output = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._output.update(data, raw=True)


screen = Screen()


def progress_bar(
    description: str, total: int, unit: str, items: Iterable[Any] | None = None, **options: Any
) -> Bar:
    """Returns a progress bar, which is erased when it is closed.

    Args:
        description: the text at its beginning.
        total: the number of units.
        unit: the name of a unit.
        items: what the bar yields and counts, if it is iterated over.
        options: other arguments of ``tqdm``.
    """
    interval = seconds() if is_redrawn() else _MESSAGE_SECONDS
    options = {"bar_format": _FORMAT, "smoothing": 0, "mininterval": interval, **options}
    return Bar(items, description, total, leave=False, unit=unit, disable=not are_shown(), **options)


@contextlib.contextmanager
def command_bar() -> Iterator[None]:
    """Shows a bar over the epochs of all jobs in the block, once ``expect_epochs`` has told their number."""
    options = {"smoothing": 0.1, "mininterval": 0, "miniters": 1, "bar_format": _COMMAND}
    screen.command = _CommandBar(leave=False, disable=not are_drawn(), **options)
    try:
        yield
    finally:
        screen.command = None


def expect_epochs(epochs: int) -> None:
    """Announces the number of epochs that the jobs to come have."""
    if screen.command is not None:
        screen.command.epochs = screen.command.trained + screen.command.skipped + epochs


def count_epochs(*, trained: int = 0, skipped: int = 0) -> None:
    """Counts epochs of this process's job among those that ``expect_epochs`` has announced."""
    if screen.parent_row is not None:
        screen.parent_row.numbers[_TRAINED] += trained
        screen.parent_row.numbers[_SKIPPED] += skipped
    elif screen.command is not None:
        screen.command.trained += trained
        screen.command.skipped += skipped


def are_shown() -> bool:
    """Returns whether bars are shown, be it as messages."""
    with_messages = logging.getLogger("kdtrain").isEnabledFor(logging.INFO)
    return with_messages if screen.is_forced is None else screen.is_forced


def are_drawn() -> bool:
    """Returns whether bars are drawn, by this process or its parent."""
    return are_shown() and is_redrawn()


def is_redrawn() -> bool:
    """Returns whether lines can be drawn anew: on a terminal and in a notebook."""
    return sys.stderr.isatty() or _is_notebook()


def seconds() -> float:
    """Returns the seconds between two drawings. In a notebook each goes through the kernel to a browser."""
    return 0.5 if _is_notebook() else 0.1


def terminal_size() -> tuple[int, int]:
    """Returns columns and rows of the terminal of stderr, 80 and 24 if they are unknown."""
    try:
        columns, rows = os.get_terminal_size(sys.stderr.fileno())
    except (OSError, ValueError):
        columns = rows = 0
    return columns or 80, rows or 24


def _is_notebook() -> bool:
    """Returns whether stderr is shown by a notebook, which is no terminal but replaces outputs."""
    return type(sys.stderr).__module__ == "ipykernel.iostream"


def _bar_line(figures: dict[str, Any]) -> str:
    """Returns a bar as one line, which leaves the last column free."""
    columns = 80 if _is_notebook() else terminal_size()[0] - 1
    line = tqdm.format_meter(**{**figures, "ncols": columns})
    trimmed: str = disp_trim("".join(letter if letter.isprintable() else "?" for letter in line), columns)
    return trimmed
