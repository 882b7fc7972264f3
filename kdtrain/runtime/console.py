"""Log messages and progress bars on stderr. Stdout is for results.

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
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO, TypeVar

from tqdm import tqdm

from kdtrain.runtime.locations import with_commands
from kdtrain.runtime.screen import (
    BAR_FORMAT,
    AnyScreen,
    Bar,
    ChildBar,
    NotebookScreen,
    Screen,
    SharedBar,
    terminal_size,
    wrapped,
)

T = TypeVar("T")

_LOGGER = logging.getLogger("kdtrain")
_LOGGER.addHandler(logging.NullHandler())  # without any handler, Python prints warnings to stderr

_OFF = logging.CRITICAL + 1
_bars = True
_bars_only = False  # bars are shown although messages are off
_shared: SharedBar | None = None  # in a child whose parent draws
_claimable = False  # whether that child may take the terminal


class _StderrHandler(logging.Handler):
    """A handler that prints each record as a line above the progress bar.

    ``tqdm.contrib.logging`` is not used for two reasons. Its handler keeps the stream that it was made
    with, but ``ignore_write_errors`` and the guard of a rank replace ``sys.stderr``. It writes a line and
    its end in two pieces, between which other processes may write to the same terminal.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record and its line end in one piece."""
        tqdm.write(f"{message_text(self.format(record))}\n", file=sys.stderr, end="")


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
    shared: SharedBar | None,
    send: Callable[[bytes], None],
    *,
    claimable: bool,
    deferred: Iterable[signal.Signals],
) -> Iterator[None]:
    """Leaves the terminal to the parent process in the block: it draws the bar and prints the messages.

    Args:
        shared: the bar that the parent reads; None if the parent does not draw.
        send: sends bytes to the parent.
        claimable: whether ``claim_terminal`` may take the terminal from the parent.
        deferred: the signals by which the parent interrupts this process.
    """
    global _shared, _claimable
    if shared is None:
        yield
        return
    handler, handlers, propagate = _PipeHandler(send, deferred), _LOGGER.handlers, _LOGGER.propagate
    _LOGGER.handlers, _LOGGER.propagate = [handler], False
    _shared, _claimable = shared, claimable
    try:
        yield
    finally:
        _shared = None
        _LOGGER.handlers, _LOGGER.propagate = handlers, propagate
        handler.acquire()  # a thread may be sending; the result comes after it


def enter_child(*, notes: bool, bars: bool) -> None:
    """Sets what this forked process prints.

    Args:
        notes: whether it prints log messages.
        bars: whether it may draw progress bars. Two processes that draw on one terminal would overwrite
            each other's lines.
    """
    global _bars
    _bars = _bars and bars
    if not notes:
        _LOGGER.setLevel(_OFF)
    # tqdm's default lock spans processes: if its holder is killed, all the others wait for ever.
    tqdm.set_lock(threading.RLock())


@contextlib.contextmanager
def silence(*, bars: bool = False) -> Iterator[None]:
    """Prints no messages and no progress bars in the block, nor in children forked from it.

    Args:
        bars: whether progress bars are shown nevertheless, if they are shown outside of the block.
    """
    global _bars_only
    level, bars_only = _LOGGER.level, _bars_only
    _bars_only = bars and _shows_bars()
    _LOGGER.setLevel(_OFF)
    try:
        yield
    finally:
        _LOGGER.setLevel(level)
        _bars_only = bars_only


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
    global _bars, _shared
    available = _shows_bars() and sys.stderr.isatty()
    if available and _shared is not None:
        available = _claimable and _shared.claim()
        if available:
            _shared = None
            _LOGGER.handlers = [_StderrHandler()]
    if available:
        _bars = False
    return available


class _TerminalBar(tqdm):
    """A bar of this process on a terminal."""

    @staticmethod
    def status_printer(file: TextIO) -> Callable[[str], None]:
        """Returns the function that draws a line, and erases what another program has left of it.

        The line is erased first: behind a character in the last column, terminals erase that character.
        """

        def draw(line: str) -> None:
            file.write(f"\r\x1b[K{line}")
            file.flush()

        return draw


class _NotebookBar(tqdm):
    """A bar of this process in a notebook."""

    def __init__(self, **arguments: Any) -> None:
        self._screen = NotebookScreen()
        super().__init__(**arguments)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Draws the bar; tqdm needs to write nothing after it."""
        self._screen.draw([str(self) if msg is None else msg])
        return False


def new_screen() -> AnyScreen | None:
    """Returns what bars are drawn on; None where lines cannot be drawn anew, or no bars are shown."""
    if not (_shows_bars() and is_redrawn()):
        return None
    return NotebookScreen() if _is_notebook() else Screen()


def is_redrawn() -> bool:
    """Returns whether bars can be drawn: on a terminal and in a notebook."""
    return is_terminal() or _is_notebook()


def is_terminal() -> bool:
    """Returns whether messages go to a terminal."""
    return sys.stderr.isatty()


def is_drawn_by_parent() -> bool:
    """Returns whether the parent process draws the bar of this one, and the time left under it."""
    return _shared is not None and _shows_bars()


def message_text(text: str) -> str:
    """Returns a message for stderr: commands begin as the user began, and lines are wrapped on a terminal."""
    return wrapped(text, terminal_size()[0]) if is_terminal() else with_commands(text)


def print_record(record: logging.LogRecord) -> None:
    """Prints a record of a child process, as this process's own."""
    logging.getLogger(record.name).handle(record)


def progress_bar(description: str, total: int, unit: str) -> Bar:
    """Returns a progress bar that is erased when it is closed.

    It is drawn on a terminal and in a notebook only.
    """
    if _shared is not None and _shows_bars():
        return ChildBar(_shared, description, total, unit)
    bar = own_progress_bar(description, total, unit)
    bar.bar_format = BAR_FORMAT
    drawn: Bar = bar
    return drawn


def own_progress_bar(description: str, total: int, unit: str) -> tqdm[None]:
    """Returns a progress bar that this process draws, as ``progress_bar`` does."""
    notebook = _is_notebook()
    return (_NotebookBar if notebook else _TerminalBar)(
        desc=description,
        total=total,
        unit=unit,
        leave=False,
        file=sys.stderr,
        disable=not (_shows_bars() and is_redrawn()),
        dynamic_ncols=not notebook,
        ncols=80 if notebook else None,
        mininterval=NotebookScreen.seconds if notebook else 0.1,
    )


def with_progress_bar(items: Iterable[T], description: str, total: int, unit: str) -> Iterator[T]:
    """Yields ``items``, and counts them on a progress bar."""
    with contextlib.closing(progress_bar(description, total, unit)) as bar:
        for item in items:
            yield item
            bar.update()


def _is_notebook() -> bool:
    """Returns whether stderr is shown by a notebook, which is no terminal but replaces outputs."""
    return type(sys.stderr).__module__ == "ipykernel.iostream"


def _shows_bars() -> bool:
    return _bars and (_bars_only or _LOGGER.isEnabledFor(logging.INFO))
