"""Ctrl-C and SIGTERM: when they may interrupt, and what they raise."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator

from kdtrain.errors import Terminated


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Lets Ctrl-C and SIGTERM wait until the end of the block, so that nothing is left half imported.

    What interrupts an import may come out of it as an ImportError. Threads that are started in the
    block never receive SIGINT at all: while oneflow's library is being loaded, the signal's handler
    is one that ends the process, whichever thread runs it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it is interrupted
        return
    arrived: list[int] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handlers = {
        number: signal.signal(number, lambda number, frame: arrived.append(number))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield
    finally:
        restore_sigint_handler()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
    if arrived:
        signal.raise_signal(arrived[0])


def restore_sigint_handler() -> None:
    """Puts Python's SIGINT handler in force again, after a library has replaced it behind its back."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT) or signal.default_int_handler)


def raise_on_sigterm() -> None:
    """Makes SIGTERM raise ``Terminated``, so that callbacks close their files before the end."""

    def raise_terminated(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
        raise Terminated

    signal.signal(signal.SIGTERM, raise_terminated)


@contextlib.contextmanager
def queue_signals() -> Iterator[SignalQueue]:
    """Lets Ctrl-C and SIGTERM raise nothing in the block: they wait to be asked for.

    An exception that may come up between any two instructions can be lost in a ``__del__``, or
    come between a fork and the note that a child has been forked.
    """
    if threading.current_thread() is not threading.main_thread():
        yield SignalQueue(None)  # only the main thread may set handlers, and only it is interrupted
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handlers = {number: signal.signal(number, _ignore) for number in (signal.SIGINT, signal.SIGTERM)}
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield SignalQueue(reader)
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        os.close(reader)
        os.close(writer)


@contextlib.contextmanager
def force_exit_after_signal(seconds: float) -> Iterator[None]:
    """Ends the process if the block still runs so many seconds after Ctrl-C or SIGTERM.

    Python calls a signal's handler between two instructions of the main thread, which may stand in C code
    that never returns. A second thread acts then, which C code that holds Python's lock would stop as well.
    Inside of ``queue_signals`` the signals do not count.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    guard = threading.Thread(target=_end_process, args=(reader, seconds, threading.get_ident()), daemon=True)
    guard.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.close(writer)  # which the guard takes for the end of the block
        guard.join()
        os.close(reader)


def _end_process(reader: int, seconds: float, thread: int) -> None:
    """Waits for a signal, then for the pipe's end; ends the process if that does not come in time."""
    while number := os.read(reader, 1):
        if number[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([reader], [], [], left)[0] and not os.read(reader, 1):
                return
        frame = sys._current_frames().get(thread)
        where = f" It stood at {frame.f_code.co_filename}, line {frame.f_lineno}." if frame else ""
        said = "interrupted" if number[0] == signal.SIGINT else "terminated"
        print(f"kdtrain: {said}, and did not end by itself in {seconds:g} s.{where}", file=sys.stderr)
        os._exit(128 + number[0])


class SignalQueue:
    """The signals that have arrived in a block of ``queue_signals``.

    Attributes:
        reader: a descriptor that becomes readable when one arrives; None where none can.
    """

    def __init__(self, reader: int | None) -> None:
        self.reader = reader

    def raise_within(self, seconds: float) -> None:
        """Waits so long for a signal, and raises it as ``raise_first`` does."""
        if self.reader is None:
            time.sleep(seconds)
        elif select.select([self.reader], [], [], seconds)[0]:
            self.raise_first()

    def raise_first(self) -> None:
        """Raises what the first signal stands for; to be called when ``reader`` is readable.

        Raises:
            KeyboardInterrupt: Ctrl-C; or its subclass ``Terminated`` for SIGTERM.
        """
        if self.reader is not None:
            raise KeyboardInterrupt if os.read(self.reader, 1)[0] == signal.SIGINT else Terminated


def _ignore(number: int, frame: object) -> None:
    """A handler that leaves everything to the wake-up descriptor."""
