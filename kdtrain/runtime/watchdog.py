"""Stall detection of child processes: their CPU time, and the Python line where they stand."""

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


class StallWatch:
    """A detector of groups of processes that use no CPU time.

    Time without checks does not count, nor time in which a process is stopped by a debugger or Ctrl-Z.

    Args:
        timeout: seconds without CPU time after which a group is stalled; 0 for no limit.

    Attributes:
        timeout: seconds, as above.
        interval: longest time between two checks of a group, in seconds; None without a limit.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.interval = min(_LONGEST_INTERVAL, timeout / 4) if timeout > 0 else None
        self._groups: dict[int, _Idle] = {}

    def is_stalled(self, group: int, pids: Sequence[int]) -> bool:
        """Returns whether processes and their descendants have used no CPU time for ``timeout`` seconds.

        Args:
            group: a number of the group, which is the same at every check.
            pids: the group's living processes.
        """
        if self.interval is None:
            return False
        now, used = time.monotonic(), sum(_cpu_seconds(pid) for pid in pids)
        before = self._groups.get(group, _Idle(now, used))
        idle = before.seconds + min(now - before.checked, 2 * self.interval)
        if abs(used - before.used) >= _CPU_SECONDS or any(_state(pid) in ("T", "t") for pid in pids):
            self._groups[group] = _Idle(now, used)
        else:
            self._groups[group] = _Idle(now, before.used, idle)
        return self._groups[group].seconds >= self.timeout


@dataclass(frozen=True)
class _Idle:
    """The time of a group's last check, its CPU time at its last progress, and the idle seconds since."""

    checked: float
    used: float
    seconds: float = 0.0


def _stat(pid: int) -> list[str]:
    """Returns the fields of ``/proc/PID/stat`` from the third on; none for a process that has ended."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _state(pid: int) -> str:
    return "".join(_stat(pid)[:1])


def _cpu_seconds(pid: int) -> float:
    """Returns the CPU seconds of a process, its living descendants, and those that it has waited for."""
    ticks = sum(map(int, _stat(pid)[11:15]))  # utime, stime, cutime, cstime
    children: list[str] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            children += task.read_text().split()
    return ticks / _TICKS + sum(_cpu_seconds(int(child)) for child in children)
