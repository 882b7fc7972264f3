"""Signal handling: Ctrl-C and SIGTERM deferred, queued or raised, and the end of a parent process."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Iterator

from kdtrain.errors import Terminated
from kdtrain.runtime.console import message_text

_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


def die_with_parent(number: signal.Signals) -> None:
    """Makes the kernel send this process the signal ``number`` when its parent ends.

    A parent that has already ended sends nothing: compare ``os.getppid()`` afterwards.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


@contextlib.contextmanager
def defer_signals() -> Iterator[None]:
    """Defers Ctrl-C and SIGTERM to the end of the block, so that no import stops halfway.

    A signal during an import may come out of it as an ImportError. Threads started in the block never
    receive SIGINT: while oneflow's library loads, its SIGINT handler ends the process, in any thread.
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
    """Installs Python's SIGINT handler again, after a C library has replaced it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT) or signal.default_int_handler)


def raise_on_sigterm() -> None:
    """Makes SIGTERM raise ``Terminated``, so that callbacks close their files before the process ends."""

    def raise_terminated(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second SIGTERM ends the process at once
        raise Terminated

    signal.signal(signal.SIGTERM, raise_terminated)


@contextlib.contextmanager
def queue_signals() -> Iterator[SignalQueue]:
    """Queues Ctrl-C and SIGTERM in the block; they raise only where the block reads the queue.

    An exception raised between two arbitrary instructions can get lost in a ``__del__``, or fall
    between a fork and the record of the new child.
    """
    if threading.current_thread() is not threading.main_thread():
        yield SignalQueue(None)  # only the main thread may set handlers, and only it is interrupted
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    handlers = {
        number: signal.signal(number, _leave_to_wakeup_pipe) for number in (signal.SIGINT, signal.SIGTERM)
    }
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    try:
        yield SignalQueue(reader)
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in handlers.items():
            signal.signal(number, handler or signal.SIG_DFL)
        os.close(reader)
        os.close(writer)


class SignalQueue:
    """The signals that arrived in a block of ``queue_signals``.

    Attributes:
        reader: a descriptor that becomes readable when a signal arrives; None where none can.
    """

    def __init__(self, reader: int | None) -> None:
        self.reader = reader

    def raise_within(self, seconds: float) -> None:
        """Waits up to ``seconds`` for a signal, and raises it as ``raise_first`` does."""
        if self.reader is None:
            time.sleep(seconds)
        elif select.select([self.reader], [], [], seconds)[0]:
            self.raise_first()

    def cause_of(self, error: KeyboardInterrupt, seconds: float) -> KeyboardInterrupt:
        """Returns what ends this process: Ctrl-C if it arrives within ``seconds``, else ``error``.

        A launcher that gets Ctrl-C sends SIGTERM, and the kernel another one when the launcher ends. Where
        all are pending, Python learns of Ctrl-C last.
        """
        deadline = time.monotonic() + seconds
        while isinstance(error, Terminated) and (left := deadline - time.monotonic()) > 0:
            try:
                self.raise_within(left)
            except KeyboardInterrupt as other:
                error = other
        return error

    def raise_first(self) -> None:
        """Raises the exception of the first signal. Call it when ``reader`` is readable.

        Raises:
            KeyboardInterrupt: Ctrl-C; or its subclass ``Terminated`` for SIGTERM.
        """
        if self.reader is not None:
            raise KeyboardInterrupt if os.read(self.reader, 1)[0] == signal.SIGINT else Terminated


@contextlib.contextmanager
def force_exit_after_signal(seconds: float) -> Iterator[None]:
    """Ends the process if the block still runs ``seconds`` after Ctrl-C or SIGTERM.

    Python runs signal handlers between two instructions of the main thread. C code that never returns
    blocks them, so a second thread ends the process. C code that also holds the GIL blocks that thread.
    Signals in an inner ``queue_signals`` do not count.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread is interrupted
        return
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    wakeup = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    watcher = threading.Thread(target=_force_exit, args=(reader, seconds, threading.get_ident()), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(wakeup)
        os.close(writer)  # end of file tells the watcher that the block has ended
        watcher.join()
        os.close(reader)


def _force_exit(reader: int, seconds: float, thread: int) -> None:
    """Waits for a signal, then for the pipe's end of file; ends the process if that comes too late."""
    while number := os.read(reader, 1):
        if number[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([reader], [], [], left)[0] and not os.read(reader, 1):
                return
        frame = sys._current_frames().get(thread)
        where = f" It stood at {frame.f_code.co_filename}, line {frame.f_lineno}." if frame else ""
        cause = "interrupted" if number[0] == signal.SIGINT else "terminated"
        text = f"kdtrain: {cause}, and did not end by itself in {seconds:g} s.{where}"
        print(message_text(text), file=sys.stderr)
        os._exit(128 + number[0])


def _leave_to_wakeup_pipe(number: int, frame: object) -> None:
    """A handler that does nothing: Python has written the signal's number to the wake-up pipe."""
