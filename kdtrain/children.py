"""Runs jobs in forked child processes, each pinned to a core.

OneFlow's CPU kernels use one core each, and they are fastest in a forked child, where every
operation runs in the calling thread. ``docs/oneflow.md`` has the figures.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NoReturn, TypeVar

from kdtrain import console
from kdtrain.errors import KdtrainError, Terminated, describe
from kdtrain.interrupts import Interrupts, interrupts_as_messages
from kdtrain.ranks import ForkedRanks, RankLostError, Ranks, shared_memory
from kdtrain.runtime import subnormals_as_zero

T = TypeVar("T")

_FORK = multiprocessing.get_context("fork")
_PATIENCE = 30.0  # seconds that an interrupted child has to close its files
_INTERRUPT = signal.SIGUSR1  # how the parent passes on Ctrl-C
_FROM_PARENT = (_INTERRUPT, signal.SIGTERM)
_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


@dataclass(frozen=True)
class Job(Generic[T]):
    """Something to compute.

    Attributes:
        name: what it is, for an error's text.
        work: called in each of the job's processes with the group that they form; what it returns
            on rank 0 is the result.
        cores: how many processes share the work, at most.
    """

    name: str
    work: Callable[[Ranks], T]
    cores: int = 1


def available_cores() -> list[int]:
    """Returns the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def run_jobs(jobs: Sequence[Job[T]]) -> list[T]:
    """Runs every job, as many side by side as there are cores; returns their results in order.

    Raises:
        KdtrainError: a child was killed.
        BaseException: whatever a job raised. The other jobs have been interrupted by then, and have
            ended.
    """
    with interrupts_as_messages() as interrupts:
        running: list[_Child] = []
        try:
            return _run(jobs, running, interrupts)
        except BaseException as error:
            _stop(running, error, interrupts)
            raise


def _run(jobs: Sequence[Job[T]], running: list[_Child], interrupts: Interrupts) -> list[T]:
    """Runs the jobs; ``running`` always tells which children there are."""
    waiting = list(enumerate(jobs))
    free = available_cores()
    results: dict[int, T] = {}
    while waiting or running:
        while waiting and (len(free) >= waiting[0][1].cores or not running):
            index, job = waiting.pop(0)
            cores, free = free[: job.cores], free[job.cores :]
            alone = not running and not (waiting and free)
            _start(index, job, cores, alone, running)
        for child in _wait_for_any(running, interrupts):
            message = child.receive()
            running.remove(child)
            free = sorted([*free, child.core])
            if message.error is not None:
                raise message.error from _ChildError(message.trace)
            if child.rank == 0:
                results[child.index] = message.value
    return [results[index] for index in range(len(jobs))]


def _wait_for_any(
    running: Sequence[_Child], interrupts: Interrupts, timeout: float | None = None
) -> list[_Child]:
    """Returns the children that have sent something, or have died, once there are any.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came first.
    """
    messages = [child.messages for child in running]
    ready = wait([*messages, *([] if interrupts.reader is None else [interrupts.reader])], timeout)
    if interrupts.reader in ready:
        interrupts.raise_first()
    return [child for child in running if child.messages in ready]


class _ChildError(Exception):
    """Where an exception was raised in a child, for --debug to show."""


@dataclass(frozen=True)
class _Message:
    """What a child sends in the end: a value, or an error and its traceback."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""


@dataclass(frozen=True)
class _Child:
    """A process under way: rank ``rank`` of job number ``index``."""

    index: int
    name: str
    rank: int
    core: int
    process: BaseProcess
    messages: Connection

    def receive(self) -> _Message:
        """Waits for the child's end; returns what it has sent, or what has ended it."""
        try:
            message: _Message = pickle.loads(self.messages.recv_bytes())
        except EOFError:
            self.process.join()
            message = _Message(error=KdtrainError(f"{self.name}: its process was ended by {self._cause()}."))
        self.process.join()
        self.messages.close()
        return message

    def _cause(self) -> str:
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exit code {code}"
        hint = ", perhaps because memory ran out" if code == -signal.SIGKILL else ""
        return f"signal {signal.Signals(-code).name}{hint}"


def _start(index: int, job: Job[T], cores: Sequence[int], alone: bool, running: list[_Child]) -> None:
    """Starts a job's processes, with a pipe between rank 0 and each of the others."""
    pipes = [Pipe() for _ in cores[1:]]
    memory = shared_memory(len(cores))
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, _FROM_PARENT)  # children unblock them when ready
    for rank, core in enumerate(cores):
        own = [near for near, _ in pipes] if rank == 0 else [pipes[rank - 1][1]]
        ranks = ForkedRanks(rank, len(cores), own, memory) if len(cores) > 1 else Ranks()
        receiver, sender = Pipe(duplex=False)
        foreign = [receiver, *(end for pair in pipes for end in pair if end not in own)]
        process = _FORK.Process(target=_child, args=(job, ranks, core, alone, sender, foreign))
        process.start()
        sender.close()
        running.append(_Child(index, job.name, rank, core, process, receiver))
    signal.pthread_sigmask(signal.SIG_SETMASK, signals)
    for pair in pipes:
        for end in pair:
            end.close()


def _child(
    job: Job[T], ranks: Ranks, core: int, alone: bool, messages: Connection, foreign: list[Connection]
) -> None:
    """What a child does: the job, and then to send its result or its error."""
    for end in foreign:
        end.close()  # a reader sees the end of a pipe once nobody holds the writing side
    gc.freeze()  # what the parent has loaded is no garbage: looking through it again and again takes time
    os.sched_setaffinity(0, {core})
    console.enter_child(notes=ranks.rank == 0, bars=alone)
    try:
        with _interrupted_by_parent_only(), subnormals_as_zero():
            value = job.work(ranks)
        message = _Message(value if ranks.rank == 0 else None)
    except BaseException as error:
        message = _Message(error=_portable(error), trace="".join(traceback.format_exception(error)))
    with contextlib.suppress(OSError):  # the parent may have gone
        messages.send_bytes(pickle.dumps(message))


@contextlib.contextmanager
def _interrupted_by_parent_only() -> Iterator[None]:
    """Takes Ctrl-C (as SIGUSR1) and SIGTERM from the parent, once, and does not outlive it.

    A terminal sends Ctrl-C to every process of a group, and some supervisors do the same with
    SIGTERM; a second signal must not disturb the closing of files.
    """

    def deaf() -> None:
        for number in (signal.SIGINT, *_FROM_PARENT):
            signal.signal(number, signal.SIG_IGN)

    def interrupted(number: int, frame: object) -> NoReturn:
        deaf()
        raise KeyboardInterrupt if number == _INTERRUPT else Terminated

    signal.set_wakeup_fd(-1)
    deaf()
    for number in _FROM_PARENT:
        signal.signal(number, interrupted)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _FROM_PARENT)
        yield
    finally:
        deaf()


def _portable(error: BaseException) -> BaseException:
    """Returns an exception that survives the way to the parent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(describe(error))
    return error


def _stop(running: Sequence[_Child], error: BaseException, interrupts: Interrupts) -> None:
    """Interrupts what still runs, and waits for its end.

    Raises:
        BaseException: what ended a rank, where ``error`` is only that another one has lost it.
    """
    left, messages = list(running), []
    try:
        for child in left:
            if child.process.is_alive() and child.process.pid is not None:
                os.kill(child.process.pid, _INTERRUPT if type(error) is KeyboardInterrupt else signal.SIGTERM)
        while ended := _wait_for_any(left, interrupts, _PATIENCE) if left else []:
            messages += [child.receive() for child in ended]
            left = [child for child in left if child not in ended]
    finally:  # out of patience, or a second Ctrl-C
        for child in left:
            child.process.kill()
    if isinstance(error, RankLostError):
        for message in messages:
            if not isinstance(message.error, (type(None), RankLostError, KeyboardInterrupt)):
                raise message.error from _ChildError(message.trace)
