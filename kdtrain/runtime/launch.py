"""Starts one process per device for ``--nproc-per-node``, and tells a process whether it is one of them.

The processes find each other by the same environment variables as under
``python -m oneflow.distributed.launch``, which serves several machines.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import math
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from kdtrain.errors import KdtrainError, Terminated, UsageError
from kdtrain.runtime.heartbeat import SILENCE, Heartbeat
from kdtrain.runtime.rendezvous import join_group
from kdtrain.runtime.signals import queue_signals

_GRACE = 5.0  # seconds that the others have to notice that one has failed
_PATIENCE = 4.0  # seconds that a process has once it was told: a little more than its guard takes
_POLL = 0.05
_PR_SET_PDEATHSIG = 1
_SILENCE = "KDTRAIN_SILENCE"  # the environment's name for the limit, where another one is wanted


def rank() -> int | None:
    """Returns this process's number among those that train together, or None if it is on its own.

    oneflow itself sets RANK to -1 in a process that is on its own.
    """
    number, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    together = number.isdecimal() and size.isdecimal() and int(size) > 1
    return int(number) if together else None


def prepare_rank() -> None:
    """Does what one of several processes has to do before it imports oneflow."""
    number = rank()
    if number is None:
        return
    if os.environ.get("MASTER_ADDR", "").startswith(("127.", "localhost")):
        # oneflow counts processes with one address as one machine, whichever launcher has started
        # them, and aborts if two of them have the same local number.
        os.environ["LOCAL_RANK"] = str(number)
    if number > 0:
        time.sleep(0.5)  # who looks for rank 0 before it listens waits ten seconds for the next try


def connect_peers(facts: Mapping[str, str]) -> Heartbeat | None:
    """Connects this process with those that it trains with; None if it is on its own.

    Args:
        facts: what has to be the same in all of them, by the name that an error gives it.

    Raises:
        KdtrainError: another one does not come, or differs.
        UsageError: the addresses cannot be used, or the settings differ.
    """
    number = rank()
    if number is None:
        return None
    _follow_launcher()
    host, port, size = (os.environ.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"))
    if not host or not port.isdecimal() or not 0 < int(port) < 1 << 16 or number >= int(size):
        raise UsageError(
            f"RANK is {number}, WORLD_SIZE {size}, MASTER_ADDR {host or 'not set'}, MASTER_PORT "
            f"{port or 'not set'}: processes that train together need a number below WORLD_SIZE each, and "
            "the address and port of process 0."
        )
    return join_group(number, int(size), (host, int(port)), facts, silence=_silence())


def die_with_parent(number: signal.Signals) -> None:
    """Has the kernel send this process a signal when its parent ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _follow_launcher() -> None:
    """Ends this process with oneflow's launcher, if that has started it.

    Ranks that were started in other ways, in the background of a shell say, may outlive that.
    """
    parent = os.getppid()
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{parent}/cmdline").read_bytes()
        if re.search(rb"oneflow[./]distributed[./]launch", words):
            die_with_parent(signal.SIGTERM)
            if os.getppid() != parent:
                raise Terminated


def _silence() -> float:
    text = os.environ.get(_SILENCE, str(SILENCE))
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < math.inf:
        raise UsageError(f"{_SILENCE} is {text!r}: it must be a number of seconds above 0.")
    return seconds


def launch(words: Sequence[str], processes: int) -> int:
    """Runs ``kdtrain`` with the same words in so many processes; returns the exit code.

    Raises:
        KdtrainError: one of them was killed.
        KeyboardInterrupt: Ctrl-C or SIGTERM; all of them have ended by then.
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(processes)}
    with queue_signals() as interrupts:
        ranks = [_Rank(number, words, address) for number in range(processes)]
        try:
            while any(one.code is None for one in ranks) and not any(one.code for one in ranks):
                interrupts.raise_within(_POLL)
            _end_all(ranks, signal.SIGTERM, grace=_GRACE)
        except KeyboardInterrupt as error:
            _end_all(ranks, signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
            raise
    return _outcome(ranks)


class _Rank:
    """One of the processes. Rank 0 speaks; what the others say on stderr is kept for the worst case."""

    def __init__(self, number: int, words: Sequence[str], address: dict[str, str]) -> None:
        self.number = number
        self.said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this object
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kdtrain", *words],
            env=os.environ | address | {"RANK": str(number), "LOCAL_RANK": str(number)},
            stdout=None if number == 0 else subprocess.DEVNULL,
            stderr=None if number == 0 else self.said,
            start_new_session=True,  # Ctrl-C is the parent's to pass on
            preexec_fn=functools.partial(die_with_parent, signal.SIGTERM),
        )

    @property
    def code(self) -> int | None:
        """The exit code; negative for a signal, None while it runs."""
        return self.process.poll()


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end_all(ranks: Sequence[_Rank], number: signal.Signals, grace: float = 0.0) -> None:
    """Waits for the ranks to end by themselves, then after a signal, then kills what is left."""
    _wait(ranks, grace)
    for one in ranks:
        if one.code is None:
            one.process.send_signal(number)
    _wait(ranks, _PATIENCE)
    for one in ranks:
        one.process.kill()
        one.process.wait()


def _wait(ranks: Sequence[_Rank], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(one.code is None for one in ranks) and time.monotonic() < deadline:
        time.sleep(_POLL)


def _outcome(ranks: Sequence[_Rank]) -> int:
    """Returns the exit code of all, or raises what only a rank that was silent can tell."""
    failed = [one for one in ranks if one.code]
    if not failed:
        return 0
    # Who is killed takes the others along: they abort, or are told to end. So those tell least.
    first = min(failed, key=lambda one: (one.code in (-signal.SIGABRT, 143), one.number))
    code = first.code or 0
    if code < 0:
        raise KdtrainError(f"process {first.number} was ended by signal {signal.Signals(-code).name}.")
    if first.number > 0:
        first.said.seek(0)
        lines = first.said.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
        raise KdtrainError(f"process {first.number} failed: {lines[-1].removeprefix('kdtrain: ')}")
    return code
