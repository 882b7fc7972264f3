"""Jobs in forked child processes, each on cores of its own.

OneFlow's CPU kernels use one core. They are fastest in a forked child, where every operation runs in the
calling thread. ``docs/oneflow.md`` has the figures. A job with several cores is one child as well: the
libraries that it calls have threads.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import multiprocessing
import os
import pickle
import signal
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, NoReturn, TypeVar

from kdtrain.errors import KdtrainError, Terminated, error_text
from kdtrain.runtime.bars import JobRow, screen, seconds
from kdtrain.runtime.console import drawn_by_parent, print_record
from kdtrain.runtime.oneflow import replace_thread_pool
from kdtrain.runtime.processor import flush_denormals
from kdtrain.runtime.signals import SignalQueue, die_with_parent, queue_signals
from kdtrain.runtime.watchdog import StackFile, StallWatch, check_interval, location

logger = logging.getLogger(__name__)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

STALL_TIMEOUT = 300.0
"""Seconds without CPU time after which a job is ended."""

_FORK = multiprocessing.get_context("fork")
_CLOSING_SECONDS = 4.0  # for interrupted children to close their files: Ctrl-C ends a fit within 5 s


@dataclass(frozen=True)
class Job(Generic[T_co]):
    """A function to run in a child process.

    Attributes:
        name: its name in error messages.
        work: the function; its return value is the job's result.
        cores: the number of cores that its threads use, at most.
    """

    name: str
    work: Callable[[], T_co]
    cores: int = 1


def available_cores() -> list[int]:
    """Returns the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def run_jobs(jobs: Sequence[Job[T]], stall_timeout: float = STALL_TIMEOUT) -> list[T]:
    """Runs every job, as many in parallel as there are cores; returns their results in order.

    Args:
        jobs: the jobs. Each starts when as many cores as it uses are free, or when no other one runs.
        stall_timeout: seconds. A job is ended when its process, and all that it has started, use no CPU
            time for so long. 0 sets no limit.

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
            screen.clear()
            _stop(running, error, signals)
            raise
        finally:
            screen.clear()


def _run(
    jobs: Sequence[Job[T]], running: list[_Child], signals: SignalQueue, stall_timeout: float
) -> list[T]:
    """Runs the jobs; ``running`` always holds the children that have not ended."""
    waiting = list(enumerate(jobs))
    free = available_cores()
    results: dict[int, T] = {}
    interval = check_interval(stall_timeout)
    checked = time.monotonic()
    while waiting or running:
        while waiting and (len(free) >= waiting[0][1].cores or not running):
            index, job = waiting.pop(0)
            cores, free = free[: job.cores], free[job.cores :]
            is_alone = not running and not (waiting and free)
            screen.erase()
            logger.debug(f"{job.name}: begun on {len(cores)} core{'s' * (len(cores) != 1)}.")
            row = screen.begin_job(job.name, is_claimable=is_alone)
            running.append(_start(index, job, cores, row, stall_timeout))
        for child in _wait_for_any(running, signals, seconds() if screen.rows else interval):
            message = child.receive()
            if message is None:
                continue
            running.remove(child)
            free = sorted([*free, *child.cores])
            screen.end_job(child.row)
            if message.error is not None:
                raise message.error from ChildError(message.trace)
            results[child.index] = message.value
            screen.erase()
            logger.debug(f"{child.name}: ended after {time.monotonic() - child.started:.1f} s.")
        screen.refresh()
        if not screen.rows or (interval is not None and time.monotonic() > checked + interval):
            checked = time.monotonic()
            for child in running:
                child.check_progress()
    return [results[index] for index in range(len(jobs))]


def _wait_for_any(
    running: Sequence[_Child], signals: SignalQueue, timeout: float | None = None
) -> list[_Child]:
    """Waits until children have sent a message, or have died; returns them.

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
    """The running process of job number ``index``."""

    index: int
    name: str
    cores: Sequence[int]
    process: BaseProcess
    pid: int
    messages: Connection
    row: JobRow | None
    stack: StackFile
    watch: StallWatch
    started: float

    def receive(self) -> Message | None:
        """Receives a message; prints it and returns None if it is for the log.

        Otherwise waits for the child's end; returns its message, or an error that names the signal or exit
        code.
        """
        try:
            message: Message | logging.LogRecord = pickle.loads(self.messages.recv_bytes())
        except (EOFError, OSError):  # OSError: it was killed while it was sending
            self.process.join()
            message = Message(error=KdtrainError(f"{self.name}: its process was ended by {self._cause()}."))
        if isinstance(message, logging.LogRecord):
            print_record(message)
            return None
        self.process.join()
        self.messages.close()
        self.stack.close()
        return message

    def check_progress(self) -> None:
        """Raises KdtrainError if the job is stalled; the text names the line where it stood."""
        if not self.watch.is_stalled():
            return
        stack = self.stack.request(self.pid)
        raise KdtrainError(
            f"{self.name} has used no CPU time for {self.watch.timeout:g} s and was ended. It stood at "
            f"{location(stack) or 'an unknown place'}. "
            "`kdtrain fit --stall-timeout SECONDS` sets the limit; 0 sets none."
        ) from ChildError(stack)

    def kill(self) -> str:
        """Kills the child; returns the line where it stood, or an empty text."""
        where = location(self.stack.request(self.pid)) if self.process.is_alive() else ""
        self.process.kill()
        while self.receive() is None:
            pass
        return where

    def _cause(self) -> str:
        code = self.process.exitcode or 0
        if code >= 0:
            return f"exit code {code}"
        where = location(self.stack.stack())  # empty after SIGKILL, which no handler can catch
        hint = f" at {where}" if where else ""
        hint = ", perhaps because memory ran out" if code == -signal.SIGKILL else hint
        return f"signal {signal.Signals(-code).name}{hint}"


def _start(
    index: int, job: Job[Any], cores: Sequence[int], row: JobRow | None, stall_timeout: float
) -> _Child:
    """Starts a job's process."""
    receiver, sender = Pipe(duplex=False)
    stack = StackFile()
    arguments = (job.work, cores, row, sender, receiver, stack)
    process = _FORK.Process(target=run_child, args=arguments)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, FROM_PARENT)  # the child unblocks them when ready
    process.start()
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    sender.close()
    assert process.pid is not None, "it has started"
    watch = StallWatch(process.pid, stall_timeout)
    return _Child(index, job.name, cores, process, process.pid, receiver, row, stack, watch, time.monotonic())


def _stop(running: Sequence[_Child], error: BaseException, signals: SignalQueue) -> None:
    """Interrupts the running children, waits until they have ended, and kills those that take too long."""
    left = list(running)
    deadline = time.monotonic() + _CLOSING_SECONDS
    try:
        for child in left:
            if child.process.is_alive():
                os.kill(child.pid, INTERRUPT if type(error) is KeyboardInterrupt else signal.SIGTERM)
        while left and (ended := _wait_for_any(left, signals, max(0.0, deadline - time.monotonic()))):
            gone = [child for child in ended if child.receive() is not None]
            left = [child for child in left if child not in gone]
    finally:  # the time is over, or a second Ctrl-C came
        for child in left:
            if (where := child.kill()) and isinstance(error, KeyboardInterrupt):
                logger.info(
                    f"{child.name} did not end in {_CLOSING_SECONDS:g} s and was killed. It stood at {where}."
                )


INTERRUPT = signal.SIGUSR1
"""The signal by which the parent passes Ctrl-C on."""
FROM_PARENT = (INTERRUPT, signal.SIGTERM)
"""The signals that interrupt a child. It starts with both blocked, and unblocks them once it handles them."""


class ChildError(Exception):
    """The traceback of an exception that was raised in a child, shown by --debug."""


@dataclass(frozen=True)
class Message:
    """The last message of a child: a value, or an error and its traceback."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""


def run_child(
    work: Callable[[], Any],
    cores: Iterable[int],
    row: JobRow | None,
    messages: Connection,
    receiver: Connection,
    stack: StackFile,
) -> None:
    """Runs a job in this forked process, and sends its result or its error.

    Args:
        work: the job; its return value is the result.
        cores: the cores that this process and its threads may use.
        row: the bar that the parent draws; None if it draws none.
        messages: the pipe to the parent.
        receiver: the parent's end of that pipe, which this process closes.
        stack: the memory that this process writes its Python stack to.
    """
    receiver.close()  # so that sending fails, and does not wait, when the parent has ended
    gc.freeze()  # the parent's objects never become garbage here: the collector need not scan them
    os.sched_setaffinity(0, cores)
    stack.install()
    try:
        with flush_denormals(), drawn_by_parent(row, messages.send_bytes, FROM_PARENT):
            replace_thread_pool()  # while signals are blocked: its threads never receive one
            os.register_at_fork(after_in_child=replace_thread_pool)  # a DataLoader's workers are forks too
            with _interrupted_by_parent_only():
                message = Message(work())
    except BaseException as error:
        message = Message(error=_picklable(error), trace="".join(traceback.format_exception(error)))
    with contextlib.suppress(OSError):  # the parent may have ended
        messages.send_bytes(pickle.dumps(message))


@contextlib.contextmanager
def _interrupted_by_parent_only() -> Iterator[None]:
    """Lets only the parent interrupt this process, by SIGUSR1 for Ctrl-C or by SIGTERM, and only once.

    A terminal sends Ctrl-C to every process of a group, and some supervisors send SIGTERM to all of
    them. A second signal must not interrupt the closing of files. The process ends with its parent.
    """

    def ignore_signals() -> None:
        for number in (signal.SIGINT, *FROM_PARENT):
            signal.signal(number, signal.SIG_IGN)

    def raise_once(number: int, frame: object) -> NoReturn:
        ignore_signals()
        raise KeyboardInterrupt if number == INTERRUPT else Terminated

    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the others keep their actions, or a pending one is lost
    for number in FROM_PARENT:
        signal.signal(number, raise_once)
    die_with_parent(signal.SIGTERM)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FROM_PARENT)
        yield
    finally:
        ignore_signals()


def _picklable(error: BaseException) -> BaseException:
    """Returns the exception, or a RuntimeError with its text if it cannot be pickled."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(error_text(error))
    return error
