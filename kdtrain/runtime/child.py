"""The child process of a job: its set-up, its signals, and the result or error that it sends."""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from kdtrain.errors import Terminated, error_text
from kdtrain.runtime.bars import JobRow
from kdtrain.runtime.console import drawn_by_parent
from kdtrain.runtime.oneflow import replace_thread_pool
from kdtrain.runtime.processor import flush_denormals
from kdtrain.runtime.signals import die_with_parent
from kdtrain.runtime.watchdog import StackFile

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
