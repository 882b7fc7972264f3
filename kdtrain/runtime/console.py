"""Log messages and progress bars on stderr. Stdout is for results.

Messages are records of the logger ``kdtrain`` at INFO. The command line installs a handler. Python code
that imports kdtrain gets no messages and no bars until it sets the level of that logger or of the root.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

_LOGGER = logging.getLogger("kdtrain")
_LOGGER.addHandler(logging.NullHandler())  # without any handler, Python prints warnings to stderr

_OFF = logging.CRITICAL + 1
_bars = True

_TERMINAL_SECONDS = 0.1  # between two drawings of a bar
_NOTEBOOK_SECONDS = 0.5  # each is a message from a forked process, through the kernel, to a browser


class _StderrHandler(logging.Handler):
    """A handler that prints each record as a line above the progress bar.

    ``tqdm.contrib.logging`` is not used for two reasons. Its handler keeps the stream that it was made
    with, but ``ignore_broken_pipe`` and the guard of a rank replace ``sys.stderr``. It writes a line and
    its end in two pieces, between which other processes may write to the same terminal.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record and its line end in one piece."""
        tqdm.write(f"{self.format(record)}\n", file=sys.stderr, end="")


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
def silence() -> Iterator[None]:
    """Prints no messages and no progress bars in the block, nor in children forked from it."""
    level = _LOGGER.level
    _LOGGER.setLevel(_OFF)
    try:
        yield
    finally:
        _LOGGER.setLevel(level)


class _Descriptor(io.FileIO):
    """A standard stream's descriptor, which becomes the null device when its pipe breaks."""

    def write(self, data: Any) -> int:
        """Writes ``data``. After a broken pipe, drops it and all later output, that of C libraries too."""
        try:
            return super().write(data)
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(data)


def open_stream(descriptor: int, like: io.TextIOWrapper) -> io.TextIOWrapper:
    """Returns a text stream that drops output after a broken pipe.

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
def ignore_broken_pipe(name: str) -> Iterator[None]:
    """Drops output to a stream after its pipe breaks, in the block and in processes forked from it.

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
    global _bars
    available = _shows_bars() and sys.stderr.isatty()
    if available:
        _bars = False
    return available


def progress_bar(description: str, total: int, unit: str) -> tqdm[None]:
    """Returns a progress bar that is erased when it is closed.

    It is drawn on a terminal and in a notebook only.
    """
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        leave=False,
        file=sys.stderr,
        disable=not (_shows_bars() and (sys.stderr.isatty() or _is_notebook())),
        dynamic_ncols=True,
        mininterval=_NOTEBOOK_SECONDS if _is_notebook() else _TERMINAL_SECONDS,
    )


def with_progress_bar(items: Iterable[T], description: str, total: int, unit: str) -> Iterator[T]:
    """Yields ``items``, and counts them on a progress bar."""
    with progress_bar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.update()


def _is_notebook() -> bool:
    """Returns whether stderr is shown by a notebook, which is no terminal but takes a carriage return."""
    return type(sys.stderr).__module__ == "ipykernel.iostream"


def _shows_bars() -> bool:
    return _bars and _LOGGER.isEnabledFor(logging.INFO)
