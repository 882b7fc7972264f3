"""Ctrl-C and SIGTERM: when they may interrupt, and what they raise."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator

from kdtrain.errors import Terminated


@contextlib.contextmanager
def interrupts_put_off() -> Iterator[None]:
    """Lets a Ctrl-C wait until the end of the block, so that nothing is left half imported.

    Threads that are started in the block never receive SIGINT at all: while oneflow's library is
    being loaded, the signal's handler is one that ends the process, whichever thread runs it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers, and only it is interrupted
        return
    arrived: list[int] = []
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    handler = signal.signal(signal.SIGINT, lambda number, frame: arrived.append(number))
    try:
        yield
    finally:
        take_interrupts_back()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler or signal.default_int_handler)
    if arrived:
        signal.raise_signal(signal.SIGINT)


def take_interrupts_back() -> None:
    """Puts Python's SIGINT handler in force again, after a library has replaced it behind its back."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.getsignal(signal.SIGINT) or signal.default_int_handler)


def turn_sigterm_into_exception() -> None:
    """Makes SIGTERM raise ``Terminated``, so that callbacks close their files before the end."""

    def raise_terminated(number: int, frame: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends the process at once
        raise Terminated

    signal.signal(signal.SIGTERM, raise_terminated)
