"""The start of processes that train together: by ``--nproc-per-node``, or by oneflow's launcher.

Both set the environment variables in which a process finds its group. Oneflow's launcher serves several
machines (``kdtrain launch``).
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import math
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO

from kdtrain.cluster.heartbeat import SILENCE, Heartbeat
from kdtrain.cluster.rendezvous import join_group
from kdtrain.errors import KdtrainError, Terminated, UsageError
from kdtrain.runtime.locations import command_name
from kdtrain.runtime.oneflow import import_oneflow
from kdtrain.runtime.ranks import LOCAL_SIZE, rank
from kdtrain.runtime.signals import die_with_parent, queue_signals

_GRACE = 5.0  # seconds in which the other ranks may end by themselves after one has failed
_CLOSING_SECONDS = 4.0  # that a rank has after a signal: a little more than its guard needs
_POLL = 0.05  # seconds
_SILENCE = "KDTRAIN_SILENCE"  # environment variable: seconds without a heartbeat, in place of SILENCE
_LAUNCHER = "KDTRAIN_LAUNCHER"  # environment variable: process number of ``launch_with_oneflow``

_CONSEQUENCES = (-signal.SIGABRT, 128 + signal.SIGTERM)
"""Exit codes of ranks that ended only because another one had ended.

OneFlow aborts a process that has lost a peer. The launcher sends SIGTERM to the remaining ranks.
"""


def connect_peers(facts: Mapping[str, str]) -> Heartbeat | None:
    """Connects this process with its group; returns None if it trains on its own.

    Args:
        facts: values that must be equal in all processes, by their name in error messages.

    Raises:
        KdtrainError: a process does not connect.
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
            f"{port or 'not set'}: each process needs a RANK below WORLD_SIZE, and the address and port of "
            "process 0."
        )
    return join_group(number, int(size), (host, int(port)), facts, silence=_silence())


def _follow_launcher() -> None:
    """Makes this process end with ``kdtrain launch``, if that has started it.

    Ranks that were started in another way, such as in the background of a shell, may outlive their parent.
    """
    parent = os.getppid()
    if os.environ.get(_LAUNCHER) == str(parent):
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


def launch_with_oneflow(settings: dict[str, str | int], words: Sequence[str]) -> int:
    """Runs ``kdtrain`` with ``words`` in this machine's processes of a group on several machines.

    Args:
        settings: the flags of oneflow's launcher, without their dashes, with their values.
        words: a command of kdtrain with its flags.

    Returns:
        The exit code, 0 or 1.

    Raises:
        KdtrainError: oneflow cannot be imported.
    """
    import_oneflow()
    launcher = importlib.import_module("oneflow.distributed.launch")
    flags = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    os.environ["KDTRAIN_COMMAND"] = begun = command_name()  # of sys.argv, which the processes do not have
    sys.argv = [f"{begun} launch", *flags, "-m", "kdtrain", *words]
    os.environ[_LAUNCHER] = str(os.getpid())
    os.environ[LOCAL_SIZE] = str(settings["nproc_per_node"])
    try:
        with contextlib.redirect_stdout(sys.stderr):  # its messages; the processes keep stdout
            launcher.main()
    except (subprocess.CalledProcessError, SystemExit):  # a process failed; SIGINT or SIGTERM
        return 1
    return 0


def launch(arguments: Sequence[str], processes: int) -> int:
    """Runs ``kdtrain`` with the same arguments in several processes; returns their exit code.

    Raises:
        KdtrainError: a process was killed, or one other than rank 0 failed.
        KeyboardInterrupt: Ctrl-C or SIGTERM; all processes have ended by then.
    """
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())}
    address |= {"WORLD_SIZE": str(processes), LOCAL_SIZE: str(processes)}
    with queue_signals() as signals:
        ranks = [_Rank(number, arguments, address) for number in range(processes)]
        try:
            while any(child.code is None for child in ranks) and not any(child.code for child in ranks):
                signals.raise_within(_POLL)
            _end_all(ranks, signal.SIGTERM, grace=_GRACE)
        except KeyboardInterrupt as error:
            _end_all(ranks, signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)
            raise
    return _exit_code(ranks)


class _Rank:
    """One of the processes. Only rank 0 prints; the stderr of the others is kept for an error message."""

    def __init__(self, number: int, arguments: Sequence[str], address: dict[str, str]) -> None:
        self.number = number
        self.stderr: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as this object
        of_rank = {"RANK": str(number), "LOCAL_RANK": str(number), "KDTRAIN_COMMAND": command_name()}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "kdtrain", *arguments],
            env=os.environ | address | of_rank,
            stdout=None if number == 0 else subprocess.DEVNULL,
            stderr=None if number == 0 else self.stderr,
            start_new_session=True,  # the terminal sends Ctrl-C to the launcher alone, which passes it on
            preexec_fn=functools.partial(die_with_parent, signal.SIGTERM),
        )

    @property
    def code(self) -> int | None:
        """The exit code; negative for a signal, None while the process runs."""
        return self.process.poll()

    def last_line(self) -> str:
        """Returns the last line on stderr, without the name of the program."""
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1].removeprefix("kdtrain: ") if lines else f"exit code {self.code}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end_all(ranks: Sequence[_Rank], number: signal.Signals, grace: float = 0.0) -> None:
    """Waits ``grace`` seconds for the ranks to end, then sends the signal, then kills those that are left."""
    _wait(ranks, grace)
    for child in ranks:
        if child.code is None:
            child.process.send_signal(number)
    _wait(ranks, _CLOSING_SECONDS)
    for child in ranks:
        child.process.kill()
        child.process.wait()


def _wait(ranks: Sequence[_Rank], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while any(child.code is None for child in ranks) and time.monotonic() < deadline:
        time.sleep(_POLL)


def _exit_code(ranks: Sequence[_Rank]) -> int:
    """Returns the exit code of the whole group.

    Raises:
        KdtrainError: a rank failed that has printed nothing to the terminal.
    """
    index = root_cause([child.code for child in ranks])
    if index is None:
        return 0
    failed = ranks[index]
    code = failed.code or 0
    if code < 0:
        raise KdtrainError(f"process {failed.number} was ended by signal {signal.Signals(-code).name}.")
    if failed.number > 0:
        raise KdtrainError(f"process {failed.number} failed: {failed.last_line()}")
    return code


def root_cause(codes: Sequence[int | None]) -> int | None:
    """Returns the index of the process to report, or None if none failed.

    That is the first one with a failure of its own. Where all failures follow from another one, it is
    the first of them.

    Args:
        codes: the exit code of each process, negative for a signal, in the order of their ranks; None
            for a process that has not ended.
    """
    failed = [index for index, code in enumerate(codes) if code not in (0, None)]
    return min(failed, key=lambda index: codes[index] in _CONSEQUENCES, default=None)
