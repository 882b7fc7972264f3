"""The child's side of a job in a forked process: it computes, and sends its parent a result or an error."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import pickle
import signal
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, NoReturn

from kdtrain.errors import Terminated, error_text
from kdtrain.runtime import console
from kdtrain.runtime.processor import flush_denormals
from kdtrain.runtime.ranks import Ranks
from kdtrain.runtime.thread_pool import replace_thread_pool
from kdtrain.runtime.watchdog import StackFile

INTERRUPT = signal.SIGUSR1
"""How the parent passes Ctrl-C on."""
FROM_PARENT = (INTERRUPT, signal.SIGTERM)
"""What interrupts a child. It blocks them from its first moment until it can handle them."""

_PR_SET_PDEATHSIG = 1  # of Linux's prctl(2)


class ChildError(Exception):
    """Where an exception was raised in a child, for --debug to show."""


@dataclass(frozen=True)
class Message:
    """What a child sends in the end: a value, or an error and its traceback."""

    value: Any = None
    error: BaseException | None = None
    trace: str = ""


def run_child(
    work: Callable[[Ranks], Any],
    ranks: Ranks,
    core: int,
    alone: bool,
    messages: Connection,
    foreign: list[Connection],
    stack: StackFile,
) -> None:
    """What a child does: the job, and then to send its result or its error."""
    for end in foreign:
        end.close()  # a reader sees the end of a pipe once nobody holds the writing side
    gc.freeze()  # what the parent has loaded is no garbage: looking through it again and again takes time
    os.sched_setaffinity(0, {core})
    stack.install()
    console.enter_child(notes=ranks.rank == 0, bars=alone)
    try:
        with _interrupted_by_parent_only(), flush_denormals():
            replace_thread_pool()
            os.register_at_fork(after_in_child=replace_thread_pool)  # for a DataLoader's workers, say
            value = work(ranks)
        message = Message(value if ranks.rank == 0 else None)
    except BaseException as error:
        message = Message(error=_portable(error), trace="".join(traceback.format_exception(error)))
    with contextlib.suppress(OSError):  # the parent may have gone
        messages.send_bytes(pickle.dumps(message))


@contextlib.contextmanager
def _interrupted_by_parent_only() -> Iterator[None]:
    """Takes Ctrl-C (as SIGUSR1) and SIGTERM from the parent, once, and does not outlive it.

    A terminal sends Ctrl-C to every process of a group, and some supervisors do the same with
    SIGTERM; a second signal must not disturb the closing of files.
    """

    def deaf() -> None:
        for number in (signal.SIGINT, *FROM_PARENT):
            signal.signal(number, signal.SIG_IGN)

    def interrupted(number: int, frame: object) -> NoReturn:
        deaf()
        raise KeyboardInterrupt if number == INTERRUPT else Terminated

    signal.set_wakeup_fd(-1)
    deaf()
    for number in FROM_PARENT:
        signal.signal(number, interrupted)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, FROM_PARENT)
        yield
    finally:
        deaf()


def _portable(error: BaseException) -> BaseException:
    """Returns an exception that survives the way to the parent."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(error_text(error))
    return error
