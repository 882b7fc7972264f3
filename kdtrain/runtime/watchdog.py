"""A watch over child processes: the CPU time that they use, and the Python line where they stand."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import re
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdtrain.runtime.user_code import is_library_code

_DUMP = signal.SIGUSR2  # asks a child for its Python stack
_DUMP_SECONDS = 1.0  # for the answer, which faulthandler writes in the signal handler itself
_LONGEST_INTERVAL = 5.0  # seconds
_CPU_SECONDS = 0.1  # less is no progress: helper threads that wake up now and then use that little
_FRAME = re.compile(r'^  File "(.*)", line (\d+) in (.*)$')
_TICKS = os.sysconf("SC_CLK_TCK")  # of CPU time, per second


class StackFile:
    """Memory that a parent and its forked child share, for the child's Python stack.

    Python writes the stack in C, in a signal's handler, so that it also comes from a child that stands in
    C code, and from one that a fatal signal is about to end.
    """

    def __init__(self) -> None:
        self._descriptor = os.memfd_create("stack")

    def install(self) -> None:
        """Has this child write its stack when its parent asks, and when a fatal signal arrives."""
        faulthandler.enable(self._descriptor)
        faulthandler.register(_DUMP, self._descriptor)

    def request(self, pid: int) -> str:
        """Returns the stack of the live child ``pid``, as ``stack`` does."""
        os.kill(pid, _DUMP)
        deadline = time.monotonic() + _DUMP_SECONDS
        while not self.stack() and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.02)  # the first lines may be there before the last
        return self.stack()

    def stack(self) -> str:
        """Returns the last stack that was written, the innermost frame first; empty if there is none."""
        text = os.pread(self._descriptor, 1 << 20, 0).decode(errors="replace")
        return text.rpartition("most recent call first):\n")[2]

    def close(self) -> None:
        """Frees the memory."""
        os.close(self._descriptor)


def location(stack: str) -> str:
    """Returns where a stack stands, as ``FILE, line N, in FUNCTION``; empty for an empty stack.

    Args:
        stack: as faulthandler writes it, the innermost frame first. The first frame counts that is of a
            user's file or a plugin: neither of kdtrain's own, nor of Python's or an installed library.
    """
    frames = [match for line in stack.splitlines() if (match := _FRAME.match(line))]
    of_users = [frame for frame in frames if not is_library_code(frame[1])]
    return next(("{}, line {}, in {}".format(*frame.groups()) for frame in of_users + frames), "")


class StallWatch:
    """Finds groups of processes that use no CPU time.

    Time that passes while nobody asks, or while a process is stopped (by a debugger, by Ctrl-Z), does not
    count.

    Args:
        timeout: seconds without CPU time after which a group is stalled; 0 for no limit.

    Attributes:
        timeout: the same.
        interval: seconds between two questions about a group, at most; None without a limit.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.interval = min(_LONGEST_INTERVAL, timeout / 4) if timeout > 0 else None
        self._groups: dict[int, _Idle] = {}

    def is_stalled(self, group: int, pids: Sequence[int]) -> bool:
        """Returns whether processes, and all that they have started, have used no CPU time for too long.

        Args:
            group: a number that stays the same from one question to the next.
            pids: the group's living processes.
        """
        if self.interval is None:
            return False
        now, used = time.monotonic(), sum(_cpu_seconds(pid) for pid in pids)
        before = self._groups.get(group, _Idle(now, used))
        idle = before.seconds + min(now - before.asked, 2 * self.interval)
        if abs(used - before.used) >= _CPU_SECONDS or any(_state(pid) in ("T", "t") for pid in pids):
            self._groups[group] = _Idle(now, used)
        else:
            self._groups[group] = _Idle(now, before.used, idle)
        return self._groups[group].seconds >= self.timeout


@dataclass(frozen=True)
class _Idle:
    """When a group was asked about, its CPU time when it last made progress, and the idle seconds since."""

    asked: float
    used: float
    seconds: float = 0.0


def _stat(pid: int) -> list[str]:
    """Returns the fields of ``/proc/PID/stat`` from the third one on; an ended process has none."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _state(pid: int) -> str:
    return "".join(_stat(pid)[:1])


def _cpu_seconds(pid: int) -> float:
    """Returns the CPU time of a process, its living descendants, and those that it has waited for."""
    ticks = sum(map(int, _stat(pid)[11:15]))  # utime, stime, cutime, cstime
    children: list[str] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += task.read_text().split()
    return ticks / _TICKS + sum(_cpu_seconds(int(child)) for child in children)
