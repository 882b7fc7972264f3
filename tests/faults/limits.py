"""Limits of time and memory for a test that reads a hostile file."""

from __future__ import annotations

import contextlib
import resource
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

_ROOM = 6 << 30  # bytes of addresses; a process that takes more gets a MemoryError, not the whole machine


@contextlib.contextmanager
def limited(seconds: float = 10.0, megabytes: float = 500.0) -> Iterator[None]:
    """Fails the test if its body takes longer than ``seconds``, or more memory than ``megabytes``.

    Memory is that of this process, beyond what it had before.
    """

    def too_long(number: int, frame: object) -> NoReturn:
        pytest.fail(f"still not done after {seconds} s")  # no Exception, so that nothing catches it

    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before, started = _status("VmHWM"), time.perf_counter()
    addresses = resource.getrlimit(resource.RLIMIT_AS)
    handler = signal.signal(signal.SIGALRM, too_long)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") * 1024 + _ROOM, addresses[1]))
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        resource.setrlimit(resource.RLIMIT_AS, addresses)
    took, more = time.perf_counter() - started, (_status("VmHWM") - before) / 1024
    print(f"{took:.2f} s, {more:.0f} MB")
    assert took < seconds
    assert more < megabytes


def _status(name: str) -> int:
    """A size of this process, in KB."""
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0])
