"""Notes and progress bars, all on stderr: stdout is for answers.

Notes are records of the logger ``kdtrain``, at INFO. The command line shows them; Python code that
imports kdtrain sees none, and no bar, until it sets that logger's level.
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
_LOGGER.addHandler(logging.NullHandler())  # or Python would print warnings and errors by itself

_NOTHING = logging.CRITICAL + 1
_bars = True


class _Notes(logging.Handler):
    """Prints each record as a line, above the progress bar if there is one.

    tqdm's own handler keeps the stream that it began with. A guarded rank exchanges ``sys.stderr``.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Writes in one piece: other processes write to the same terminal."""
        tqdm.write(f"{self.format(record)}\n", file=sys.stderr, end="")


@contextlib.contextmanager
def log_to_stderr() -> Iterator[None]:
    """Shows notes and progress bars meanwhile, as the command line does."""
    handler, level = _Notes(), _LOGGER.level
    _LOGGER.addHandler(handler)
    _LOGGER.setLevel(logging.INFO)
    _LOGGER.propagate = False  # a library may have given the root logger a handler of its own
    try:
        yield
    finally:
        _LOGGER.propagate = True
        _LOGGER.setLevel(level)
        _LOGGER.removeHandler(handler)


def enter_child(*, notes: bool, bars: bool) -> None:
    """Makes this forked process show notes and progress bars, or notes alone, or nothing at all.

    Two processes that draw bars on one terminal would draw over each other's lines.
    """
    global _bars
    _bars = _bars and bars
    if not notes:
        _LOGGER.setLevel(_NOTHING)
    # tqdm's own lock spans processes: one that is killed while it draws would stop all the others.
    tqdm.set_lock(threading.RLock())


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Shows neither notes nor progress bars meanwhile, in forked children neither."""
    level = _LOGGER.level
    _LOGGER.setLevel(_NOTHING)
    try:
        yield
    finally:
        _LOGGER.setLevel(level)


class _Descriptor(io.FileIO):
    """A standard stream's descriptor, which leads nowhere once nobody reads what is written to it."""

    def write(self, data: Any) -> int:
        """Writes; drops this and all that follows, also what libraries write, if the reader has gone."""
        try:
            return super().write(data)
        except BrokenPipeError:
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self.fileno())
            os.close(null)
            return len(data)


def open_stream(descriptor: int, like: io.TextIOWrapper) -> io.TextIOWrapper:
    """Returns a text stream that drops what nobody reads, and is otherwise like another one."""
    raw = _Descriptor(descriptor, "w", closefd=False)
    return io.TextIOWrapper(
        raw if like.write_through else io.BufferedWriter(raw),  # as Python itself has it
        like.encoding,
        like.errors,
        line_buffering=like.line_buffering,
        write_through=like.write_through,
    )


@contextlib.contextmanager
def ignore_broken_pipe(name: str) -> Iterator[None]:
    """Lets the block, and the processes that it forks, go on when nobody reads a stream any more.

    Args:
        name: ``stdout`` or ``stderr``.
    """
    stream = getattr(sys, name)
    try:
        own = open_stream(stream.fileno(), stream)
    except (OSError, AttributeError):  # it is no file: a notebook's, say
        yield
        return
    stream.flush()
    setattr(sys, name, own)
    try:
        yield
    finally:
        own.flush()
        setattr(sys, name, stream)


def claim_terminal() -> bool:
    """Asks for the terminal, for a display of one's own; no progress bar is drawn from then on.

    Returns:
        Whether it is to be had: not without a terminal, nor where other processes work beside this one.
    """
    global _bars
    free = _shows_bars() and sys.stderr.isatty()
    if free:
        _bars = False
    return free


def progress_bar(description: str, total: int, unit: str) -> tqdm[None]:
    """Returns a bar that vanishes when it is closed, and is not drawn at all without a terminal."""
    return tqdm(
        desc=description,
        total=total,
        unit=unit,
        leave=False,
        file=sys.stderr,
        disable=None if _shows_bars() else True,
        dynamic_ncols=True,
    )


def with_progress_bar(items: Iterable[T], description: str, total: int, unit: str) -> Iterator[T]:
    """Yields ``items`` while a bar counts them."""
    with progress_bar(description, total, unit) as bar:
        for item in items:
            yield item
            bar.update()


def _shows_bars() -> bool:
    return _bars and _LOGGER.isEnabledFor(logging.INFO)
