"""Stall detection of child processes: their CPU time, and the Python line where they stand."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import time
from pathlib import Path

from kdtrain.runtime.user_code import is_library_code

_DUMP = signal.SIGUSR2  # makes a child write its Python stack
_DUMP_SECONDS = 1.0  # to wait for the stack, which faulthandler writes inside the signal handler
_LONGEST_INTERVAL = 5.0  # seconds
_CPU_SECONDS = 0.1  # less is no progress: idle helper threads use that little
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
_TICKS = os.sysconf("SC_CLK_TCK")  # of CPU time, per second


class StackFile:
    """Memory shared by a parent and its forked child, which the child writes its Python stack to.

    faulthandler writes the stack in C, in a signal handler. So a child that stands in C code writes it,
    too, and one that a fatal signal is about to end.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("stack")

    def install(self) -> None:
        """Makes this child write its stack at the parent's request, and at a fatal signal."""
        faulthandler.enable(self._descriptor)
        faulthandler.register(_DUMP, self._descriptor)

    def request(self, pid: int) -> str:
        """Makes the live child ``pid`` write its stack; returns it as ``stack`` does."""
        os.kill(pid, _DUMP)
        deadline = time.monotonic() + _DUMP_SECONDS
        while not self.stack() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02)  # the first lines are written before the last
        return self.stack()

    def stack(self) -> str:
        """Returns the last stack written, innermost frame first; empty if there is none."""
        text = os.pread(self._descriptor, 1 << 20, 0).decode(errors="replace")
        return text.rpartition("most recent call first):\n")[2]

    def close(self) -> None:
        """Frees the memory."""
        os.close(self._descriptor)


def location(stack: str) -> str:
    """Returns the place of a stack, as ``FILE, line N, in FUNCTION``; empty for an empty stack.

    This is the innermost frame in a file of the user's or a plugin. If there is none, it is the innermost
    frame of all.

    Args:
        stack: as faulthandler writes it, innermost frame first.
    """
    frames = [match for line in stack.splitlines() if (match := _FRAME.match(line))]
    user_frames = [frame for frame in frames if not is_library_code(frame[1])]
    return next(("{}, line {}, in {}".format(*frame.groups()) for frame in user_frames + frames), "")


def check_interval(timeout: float) -> float | None:
    """Returns the longest time between two checks of a process, in seconds; None without a limit.

    Args:
        timeout: the limit of a ``StallWatch``, in seconds; 0 for none.
    """
    return min(_LONGEST_INTERVAL, timeout / 4) if timeout > 0 else None


class StallWatch:
    """A detector of a process that uses no CPU time: neither its threads nor its descendants.

    Time without checks does not count, nor time in which the process is stopped by a debugger or Ctrl-Z.

    Args:
        pid: the process's number.
        timeout: seconds without CPU time after which the process is stalled; 0 for no limit.

    Attributes:
        timeout: seconds, as above.
    """

    def __init__(self, pid: int, timeout: float) -> None:
        self.timeout = timeout
        self._pid = pid
        self._interval = check_interval(timeout)
        self._checked = time.monotonic()
        self._used = 0.0  # CPU seconds at the last progress
        self._idle = 0.0  # seconds since then

    def is_stalled(self) -> bool:
        """Returns whether the living process and its descendants have used no CPU time for too long."""
        if self._interval is None:
            return False
        now, used = time.monotonic(), _cpu_seconds(self._pid)
        self._idle += min(now - self._checked, 2 * self._interval)
        self._checked = now
        if abs(used - self._used) >= _CPU_SECONDS or _state(self._pid) in ("T", "t"):
            self._used, self._idle = used, 0.0
        return self._idle >= self.timeout


def _stat(pid: int) -> list[str]:
    """Returns the fields of ``/proc/PID/stat`` from the third on; none for a process that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _state(pid: int) -> str:
    return "".join(_stat(pid)[:1])


def _cpu_seconds(pid: int) -> float:
    """Returns the CPU seconds of a process, its living descendants, and those that it has waited for.

    Those of a process are the sum over its threads.
    """
    ticks = sum(map(int, _stat(pid)[11:15]))  # utime, stime, cutime, cstime
    children: list[str] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += task.read_text().split()
    return ticks / _TICKS + sum(_cpu_seconds(int(child)) for child in children)
