"""Log messages on stderr, above the progress bars. Stdout is for results.

Messages are records of the logger ``kdtrain`` at INFO. The command line installs a handler. Python code
that imports kdtrain gets no messages and no bars until it sets the level of that logger or of the root.
"""

from __future__ import annotations

import contextlib
import io
import logging
import logging.handlers
import os
import pickle
import queue
import re
import signal
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from kdtrain.runtime.bars import JobRow, are_drawn, are_shown, screen, terminal_size
from kdtrain.runtime.locations import with_commands

_LOGGER = logging.getLogger("kdtrain")
_LOGGER.addHandler(logging.NullHandler())  # without any handler, Python prints warnings to stderr

OFF = logging.CRITICAL + 1
"""The level at which nothing is printed."""

_INDENTED = re.compile(r" *(?:\S{1,12}  +)?")
_UNBROKEN = "\0"  # stands for a space at which no line is broken


class _StderrHandler(logging.Handler):
    """A handler that prints each record as a line above the progress bars.

    ``logging.StreamHandler`` keeps the stream that it was made with, but ``ignore_write_errors`` and the
    guard of a rank replace ``sys.stderr``.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record and its line end in one piece, because other processes may write too."""
        screen.erase()
        sys.stderr.write(f"{message_text(self.format(record))}\n")
        sys.stderr.flush()


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Prints messages and shows progress bars in the block, as the command line does."""
    handler, level = _StderrHandler(), _LOGGER.level
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = (
        False  # a library may have added a handler to the root logger: each line would come twice
    )
    try:
        yield
    finally:
        _LOGGER.propagate = True
        _LOGGER.setLevel(level)
        _LOGGER.removeHandler(handler)


def set_level(level: int) -> None:
    """Sets which messages the command line prints: ``logging.WARNING`` for --quiet, ``DEBUG`` for --verbose.

    Bars are shown with messages of the level INFO.
    """
    _LOGGER.setLevel(level)


class _PipeHandler(logging.handlers.QueueHandler):
    """A handler that sends records to the parent process, which prints them above the bars.

    Args:
        send: sends bytes to the parent.
        deferred: the signals that may interrupt this process; they wait until a record is sent whole.
    """

    def __init__(self, send: Callable[[bytes], None], deferred: Iterable[signal.Signals]) -> None:
        super().__init__(queue.SimpleQueue())  # not used: enqueue sends
        self._send = send
        self._process = os.getpid()
        self._deferred = set(deferred)
        self._in_a_fork = _StderrHandler()

    def emit(self, record: logging.LogRecord) -> None:
        """Sends a record; a process forked from this one prints it, because pipes are for one writer."""
        if os.getpid() != self._process:
            self._in_a_fork.emit(record)
        else:
            super().emit(record)

    def enqueue(self, record: logging.LogRecord) -> None:
        """Sends a record in one piece; drops it if the parent has ended."""
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, self._deferred)
        try:
            with contextlib.suppress(OSError):
                self._send(pickle.dumps(record))
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextlib.contextmanager
def drawn_by_parent(
    row: JobRow | None, send: Callable[[bytes], None], deferred: Iterable[signal.Signals]
) -> Iterator[None]:
    """Leaves the terminal to the parent process in the block: it draws the bar and prints the messages.

    Args:
        row: the row that the parent draws; None if it does not draw.
        send: sends bytes to the parent.
        deferred: the signals by which the parent interrupts this process.
    """
    if row is None:
        yield
        return
    handler, handlers, propagate = _PipeHandler(send, deferred), _LOGGER.handlers, _LOGGER.propagate
    _LOGGER.handlers, _LOGGER.propagate = [handler], False
    screen.rows.clear()
    screen.parent_row = row
    try:
        yield
    finally:
        _LOGGER.handlers, _LOGGER.propagate = handlers, propagate
        handler.acquire()  # a thread may be sending; the result comes after it


@contextlib.contextmanager
def silence(*, bars: bool = False) -> Iterator[None]:
    """Prints no messages and no progress bars in the block, nor in children forked from it.

    Args:
        bars: whether progress bars are shown nevertheless, if they are shown outside of the block.
    """
    level, is_forced = _LOGGER.level, screen.is_forced
    screen.is_forced = bars and are_shown()
    _LOGGER.setLevel(OFF)
    try:
        yield
    finally:
        _LOGGER.setLevel(level)
        screen.is_forced = is_forced


class _Descriptor(io.FileIO):
    """A standard stream's descriptor, which becomes the null device when it cannot be written."""

    def write(self, data: Any) -> int:
        """Writes ``data``. After an error, drops it and all later output, that of C libraries too.

        The reader of a pipe has exited, a terminal has gone away (EIO), or the disk of a log is full.
        """
        try:
            return super().write(data)
        except OSError as error:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            if not isinstance(error, BrokenPipeError) and self.fileno() == 1:
                _LOGGER.warning(
                    f"kdtrain: stdout cannot be written ({error.strerror}): its output stops here."
                )
            return len(data)


def open_stream(descriptor: int, like: io.TextIOWrapper) -> io.TextIOWrapper:
    """Returns a text stream that drops its output after an error of writing.

    Args:
        descriptor: the descriptor to write to.
        like: the stream whose encoding and buffering it takes.
    """
    raw = _Descriptor(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        raw if like.write_through else io.BufferedWriter(raw),  # as in CPython
        like.encoding,
        like.errors,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )


@contextlib.contextmanager
def ignore_write_errors(name: str) -> Iterator[None]:
    """Drops output to a stream once it cannot be written, in the block and in processes forked from it.

    Args:
        name: ``stdout`` or ``stderr``.
    """
    stream = getattr(sys, name)
    try:
        replacement = open_stream(stream.fileno(), stream)
    except (OSError, AttributeError):  # a notebook's stream has no descriptor
        yield
        return
    stream.flush()
    setattr(sys, name, replacement)
    try:
        yield
    finally:
        replacement.flush()
        setattr(sys, name, stream)


def claim_terminal() -> bool:
    """Reserves the terminal for a plugin's own display: kdtrain draws no progress bars from then on.

    Returns:
        False without a TTY or with parallel jobs: the plugin must then draw nothing.
    """
    available = are_drawn() and sys.stderr.isatty()
    if available and screen.parent_row is not None:
        available = screen.parent_row.claim()
        if available:
            screen.parent_row = None
            _LOGGER.handlers = [_StderrHandler()]
    if available:
        screen.is_forced = False
    return available


def print_record(record: logging.LogRecord) -> None:
    """Prints a record of a child process, as this process's own."""
    screen.erase()
    logging.getLogger(record.name).handle(record)


def message_text(text: str) -> str:
    """Returns a message for stderr: commands begin as the user began, and lines are wrapped on a terminal."""
    return wrapped(text, terminal_size()[0]) if sys.stderr.isatty() else with_commands(text)


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
