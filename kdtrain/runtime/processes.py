"""Runs jobs in forked child processes, each pinned to a core.

OneFlow's CPU kernels use one core each, and they are fastest in a forked child, where every
operation runs in the calling thread. ``docs/oneflow.md`` has the figures.
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
from kdtrain.runtime.ranks import ForkedRanks, RankLostError, Ranks, shared_memory
from kdtrain.runtime.signals import SignalQueue, queue_signals
from kdtrain.runtime.watchdog import StackFile, StallWatch, location

logger = logging.getLogger(__name__)

T = TypeVar("T")

STALL_TIMEOUT = 300.0
"""Seconds without any CPU time after which a job's processes are ended."""

_FORK = multiprocessing.get_context("fork")
_PATIENCE = 4.0  # seconds that interrupted children have to close their files: Ctrl-C ends a fit in 5


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


def run_jobs(jobs: Sequence[Job[T]], stall_timeout: float = STALL_TIMEOUT) -> list[T]:
    """Runs every job, as many side by side as there are cores; returns their results in order.

    Args:
        jobs: what to run.
        stall_timeout: seconds. A job is ended when all its processes, and all that they have started, use
            no CPU time for so long. A process that waits for another one of its job is no stall while
            that one computes. 0 turns this off.

    Raises:
        KdtrainError: a child was killed, or a job was stalled; the text names the line where it stood.
        BaseException: whatever a job raised. The other jobs have been interrupted by then, and have
            ended.
    """
    with queue_signals() as interrupts:
        running: list[_Child] = []
        try:
            return _run(jobs, running, interrupts, stall_timeout)
        except BaseException as error:
            _stop(running, error, interrupts)
            raise


def _run(
    jobs: Sequence[Job[T]], running: list[_Child], interrupts: SignalQueue, stall_timeout: float
) -> list[T]:
    """Runs the jobs; ``running`` always tells which children there are."""
    waiting = list(enumerate(jobs))
    watch = StallWatch(stall_timeout)
    free = available_cores()
    results: dict[int, T] = {}
    while waiting or running:
        while waiting and (len(free) >= waiting[0][1].cores or not running):
            index, job = waiting.pop(0)
            cores, free = free[: job.cores], free[job.cores :]
            alone = not running and not (waiting and free)
            _start(index, job, cores, alone, running)
        for child in _wait_for_any(running, interrupts, watch.interval):
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
    running: Sequence[_Child], interrupts: SignalQueue, timeout: float | None = None
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


@dataclass(frozen=True)
class _Child:
    """A process under way: rank ``rank`` of job number ``index``."""

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
        assert self.process.pid is not None, "a child is started before it is noted"
        return self.process.pid

    def receive(self) -> Message:
        """Waits for the child's end; returns what it has sent, or what has ended it."""
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
        """Ends the child at once; returns where it stood, or an empty text."""
        where = location(self.stack.ask(self.pid)) if self.process.is_alive() else ""
        self.process.kill()
        self.receive()
        return where

    def _cause(self) -> str:
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exit code {code}"
        where = location(self.stack.stack())  # empty after SIGKILL, which no handler can answer
        hint = f" at {where}" if where else ""
        hint = ", perhaps because memory ran out" if code == -signal.SIGKILL else hint
        return f"signal {signal.Signals(-code).name}{hint}"


def _check_progress(running: Sequence[_Child], watch: StallWatch) -> None:
    """Raises KdtrainError if a job is stalled; the text names the line where it stood."""
    jobs: dict[int, list[_Child]] = {}
    for child in running:
        jobs.setdefault(child.index, []).append(child)
    for index, job in jobs.items():
        if not watch.is_stalled(index, [child.pid for child in job]):
            continue
        stacks = [child.stack.ask(child.pid) for child in job]
        # Every process stands still; those in ranks.py wait for the one that stands elsewhere.
        blamed = min(
            stacks, key=lambda stack: not stack or "kdtrain/runtime/ranks.py" in stack.partition("\n")[0]
        )
        raise KdtrainError(
            f"{job[0].name} has used no CPU time for {watch.timeout:g} s and was ended. It stood at "
            f"{location(blamed) or 'an unknown place'}. "
            "`kdtrain fit --stall-timeout SECONDS` sets the limit; 0 sets none."
        ) from ChildError("\n".join(stacks))


def _start(index: int, job: Job[T], cores: Sequence[int], alone: bool, running: list[_Child]) -> None:
    """Starts a job's processes, with a pipe between rank 0 and each of the others."""
    pipes = [Pipe() for _ in cores[1:]]
    memory = shared_memory(len(cores))
    signals = signal.pthread_sigmask(signal.SIG_BLOCK, FROM_PARENT)  # children unblock them when ready
    for rank, core in enumerate(cores):
        own = [near for near, _ in pipes] if rank == 0 else [pipes[rank - 1][1]]
        ranks = ForkedRanks(rank, len(cores), own, memory) if len(cores) > 1 else Ranks()
        receiver, sender = Pipe(duplex=False)
        stack = StackFile()
        foreign = [receiver, *(end for pair in pipes for end in pair if end not in own)]
        process = _FORK.Process(target=run_child, args=(job.work, ranks, core, alone, sender, foreign, stack))
        process.start()
        sender.close()
        running.append(_Child(index, job.name, rank, core, process, receiver, stack))
    signal.pthread_sigmask(signal.SIG_SETMASK, signals)
    for pair in pipes:
        for end in pair:
            end.close()


def _stop(running: Sequence[_Child], error: BaseException, interrupts: SignalQueue) -> None:
    """Interrupts what still runs, waits for its end, and kills what has not ended in time.

    Raises:
        BaseException: what ended a rank, where ``error`` is only that another one has lost it.
    """
    left, messages = list(running), []
    deadline = time.monotonic() + _PATIENCE
    try:
        for child in left:
            if child.process.is_alive():
                os.kill(child.pid, INTERRUPT if type(error) is KeyboardInterrupt else signal.SIGTERM)
        while left and (ended := _wait_for_any(left, interrupts, max(0.0, deadline - time.monotonic()))):
            messages += [child.receive() for child in ended]
            left = [child for child in left if child not in ended]
    finally:  # out of patience, or a second Ctrl-C
        for child in left:
            if (where := child.kill()) and isinstance(error, KeyboardInterrupt):
                logger.info(
                    f"{child.name} did not end in {_PATIENCE:g} s and was killed. It stood at {where}."
                )
    if isinstance(error, RankLostError):
        for message in messages:
            if not isinstance(message.error, (type(None), RankLostError, KeyboardInterrupt)):
                raise message.error from ChildError(message.trace)
