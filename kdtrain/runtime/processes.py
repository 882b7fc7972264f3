"""Jobs in forked child processes, each process pinned to a core.

OneFlow's CPU kernels use one core each. They are fastest in a forked child, where every operation runs
in the calling thread. ``docs/oneflow.md`` has the figures.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess
from typing import Generic, TypeVar

from kdtrain.errors import KdtrainError
from kdtrain.runtime.child import FROM_PARENT, INTERRUPT, ChildError, Message, run_child
from kdtrain.runtime.ranks import ForkedRanks, Ranks, shared_memory
from kdtrain.runtime.root_cause import RankLostError, root_cause
from kdtrain.runtime.signals import SignalQueue, queue_signals
from kdtrain.runtime.watchdog import StackFile, StallWatch, location

logger = logging.getLogger(__name__)

T = TypeVar("T")

STALL_TIMEOUT = 300.0
"""Seconds without CPU time after which a job's processes are ended."""

_FORK = multiprocessing.get_context("fork")
_CLOSING_SECONDS = 4.0  # for interrupted children to close their files: Ctrl-C ends a fit within 5 s


@dataclass(frozen=True)
class Job(Generic[T]):
    """A function to run in child processes.

    Attributes:
        name: its name in error messages.
        work: the function. Each process of the job calls it with the group that they form. Its return
            value on rank 0 is the job's result.
        cores: the number of processes that share the work, at most.
    """

    name: str
    work: Callable[[Ranks], T]
    cores: int = 1


def available_cores() -> list[int]:
    """Returns the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def run_jobs(jobs: Sequence[Job[T]], stall_timeout: float = STALL_TIMEOUT) -> list[T]:
    """Runs every job, as many in parallel as there are cores; returns their results in order.

    Args:
        jobs: the jobs.
        stall_timeout: seconds. A job is ended when all its processes, and all that they have started,
            use no CPU time for so long. A process that waits for another one of its job is not stalled
            while that one computes. 0 sets no limit.

    Raises:
        KdtrainError: a child was killed, or a job stalled; the text names the line where it stood.
        BaseException: the exception that a job raised. The other jobs have been interrupted, and have
            ended, before it is raised here.
    """
    with queue_signals() as signals:
        running: list[_Child] = []
        try:
            return _run(jobs, running, signals, stall_timeout)
        except BaseException as error:
            _stop(running, error, signals)
            raise


def _run(
    jobs: Sequence[Job[T]], running: list[_Child], signals: SignalQueue, stall_timeout: float
) -> list[T]:
    """Runs the jobs; ``running`` always holds the children that have not ended."""
    waiting = list(enumerate(jobs))
    watch = StallWatch(stall_timeout)
    free = available_cores()
    results: dict[int, T] = {}
    while waiting or running:
        while waiting and (len(free) >= waiting[0][1].cores or not running):
            index, job = waiting.pop(0)
            cores, free = free[: job.cores], free[job.cores :]
            draws_bars = not running and not (waiting and free)
            _start(index, job, cores, draws_bars, running)
        for child in _wait_for_any(running, signals, watch.interval):
            message = child.receive()
            running.remove(child)
            free = sorted([*free, child.core])
            if message.error is not None:
                raise message.error from ChildError(message.trace)
            if child.rank == 0:
                results[child.index] = message.value
        _check_progress(running, watch)
    return [results[index] for index in range(len(jobs))]


def _wait_for_any(
    running: Sequence[_Child], signals: SignalQueue, timeout: float | None = None
) -> list[_Child]:
    """Waits until children have sent their last message, or have died; returns them.

    Raises:
        KeyboardInterrupt: Ctrl-C or SIGTERM came first.
    """
    messages = [child.messages for child in running]
    ready = wait([*messages, *([] if signals.reader is None else [signals.reader])], timeout)
    if signals.reader in ready:
        signals.raise_first()
    return [child for child in running if child.messages in ready]


@dataclass(frozen=True)
class _Child:
    """A running process: rank ``rank`` of job number ``index``."""

    index: int
    name: str
    rank: int
    core: int
    process: BaseProcess
    messages: Connection
    stack: StackFile

    @property
    def pid(self) -> int:
        """The process's number."""
        assert self.process.pid is not None, "a _Child is made after its process has started"
        return self.process.pid

    def receive(self) -> Message:
        """Waits for the child's end; returns its message, or an error that names the signal or exit code."""
        try:
            message: Message = pickle.loads(self.messages.recv_bytes())
        except EOFError:
            self.process.join()
            message = Message(error=KdtrainError(f"{self.name}: its process was ended by {self._cause()}."))
        self.process.join()
        self.messages.close()
        self.stack.close()
        return message

    def kill(self) -> str:
        """Kills the child; returns the line where it stood, or an empty text."""
        where = location(self.stack.request(self.pid)) if self.process.is_alive() else ""
        self.process.kill()
        self.receive()
        return where

    def _cause(self) -> str:
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exit code {code}"
        where = location(self.stack.stack())  # empty after SIGKILL, which no handler can catch
        hint = f" at {where}" if where else ""
        hint = ", perhaps because memory ran out" if code == -signal.SIGKILL else hint
        return f"signal {signal.Signals(-code).name}{hint}"


def _check_progress(running: Sequence[_Child], watch: StallWatch) -> None:
    """Raises KdtrainError if a job is stalled; the text names the line where it stood."""
    jobs: dict[int, list[_Child]] = {}
    for child in running:
        jobs.setdefault(child.index, []).append(child)
    for index, children in jobs.items():
        if not watch.is_stalled(index, [child.pid for child in children]):
            continue
        stacks = [child.stack.request(child.pid) for child in children]
        # All processes stand still. Those in ranks.py wait for the one that stands elsewhere.
        stalled = min(
            stacks, key=lambda stack: not stack or "kdtrain/runtime/ranks.py" in stack.partition("\n")[0]
        )
        raise KdtrainError(
            f"{children[0].name} has used no CPU time for {watch.timeout:g} s and was ended. It stood at "
            f"{location(stalled) or 'an unknown place'}. "
            "`kdtrain fit --stall-timeout SECONDS` sets the limit; 0 sets none."
        ) from ChildError("\n".join(stacks))


def _start(index: int, job: Job[T], cores: Sequence[int], draws_bars: bool, running: list[_Child]) -> None:
    """Starts a job's processes, with a pipe between rank 0 and each of the others."""
    pipes = [Pipe() for _ in cores[1:]]
    memory = shared_memory(len(cores))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FROM_PARENT)  # children unblock them when ready
    for rank, core in enumerate(cores):
        rank_pipes = [near for near, _ in pipes] if rank == 0 else [pipes[rank - 1][1]]
        ranks = ForkedRanks(rank, len(cores), rank_pipes, memory) if len(cores) > 1 else Ranks()
        receiver, sender = Pipe(duplex=False)
        stack = StackFile()
        inherited = [receiver, *(end for pipe in pipes for end in pipe if end not in rank_pipes)]
        process = _FORK.Process(
            target=run_child, args=(job.work, ranks, core, draws_bars, sender, inherited, stack)
        )
        process.start()
        sender.close()
        running.append(_Child(index, job.name, rank, core, process, receiver, stack))
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    for pipe in pipes:
        for end in pipe:
            end.close()


def _stop(running: Sequence[_Child], error: BaseException, signals: SignalQueue) -> None:
    """Interrupts the running children, waits until they have ended, and kills those that take too long.

    Raises:
        BaseException: the error of the rank that ended first, where ``error`` only follows from that.
    """
    left, messages = list(running), [Message(error=error)]
    deadline = time.monotonic() + _CLOSING_SECONDS
    try:
        for child in left:
            if child.process.is_alive():
                os.kill(child.pid, INTERRUPT if type(error) is KeyboardInterrupt else signal.SIGTERM)
        while left and (ended := _wait_for_any(left, signals, max(0.0, deadline - time.monotonic()))):
            messages += [child.receive() for child in ended]
            left = [child for child in left if child not in ended]
    finally:  # the time is over, or a second Ctrl-C came
        for child in left:
            if (where := child.kill()) and isinstance(error, KeyboardInterrupt):
                logger.info(
                    f"{child.name} did not end in {_CLOSING_SECONDS:g} s and was killed. It stood at {where}."
                )
    if isinstance(error, RankLostError):
        cause = messages[root_cause([message.error for message in messages]) or 0]
        if cause.error is not None and cause.error is not error:
            raise cause.error from ChildError(cause.trace)
