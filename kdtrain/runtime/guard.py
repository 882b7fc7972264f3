"""One of several processes that train together, and the guard that sees to it that it ends.

The guard is the process that was started; it forks the worker, in which the fit runs. Whatever the
worker waits for, in C++ too, the guard hears the peers (``heartbeat``), the launcher and Ctrl-C, and
ends the worker: first it asks, so that files are closed, then it kills. OneFlow keeps Python's lock
while it connects the processes, so a thread of the worker could not do that.

A worker that has ended does not leave before the guards have spoken: when its connections are closed,
oneflow aborts the peers, and they have files to close.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO

from kdtrain.errors import KdtrainError, Terminated, error_text
from kdtrain.runtime.console import open_stream
from kdtrain.runtime.heartbeat import Heartbeat, News, from_line, to_line
from kdtrain.runtime.signals import SignalQueue, die_with_parent, queue_signals

_TICK = 0.1  # seconds between two looks at the worker
_CLOSING = 2.5  # seconds that a worker has to close its files
_FAREWELL = 1.0  # seconds that the peers have to do so, after this guard's worker
_SETTLING = 2.5  # seconds that a worker has to fail by itself in the way that a peer has failed
_AGAIN = 0.5  # seconds after which another Ctrl-C is a second one
_TEXT = 500  # characters of an error that the peers are told
_SAID = 2000  # bytes of what oneflow said that are shown
_TO_WORKER = signal.SIGUSR1  # says that there is a reason to fail to be read

_guard: socket.socket | None = None  # in a worker: the connection to its guard


def run_guarded(work: Callable[[], None], heartbeat: Heartbeat) -> int:
    """Does the work in a process of its own, and ends that process when a peer has ended.

    Returns, in both processes, how it ended: 0, or the guard's exit code.

    Raises:
        BaseException: in the worker, what ``work`` raises. ``end`` tells the guard.
    """
    with queue_signals() as interrupts, tempfile.TemporaryFile() as said:
        near, far = socket.socketpair()
        parent = os.getpid()
        worker = os.fork()
        if worker != 0:
            far.close()
            return _Guard(worker, near, said, heartbeat, interrupts).watch()
        _become_worker(parent, far, said)
    near.close()
    heartbeat.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have had it ignored
    signal.signal(_TO_WORKER, _fail)
    try:
        work()
    except Exception as error:
        if isinstance(error.__cause__, _PeerLostError):
            raise error.__cause__ from None  # it came while a hook ran, which has no part in it
        text = re.sub(r"\x1b\[[0-9;]*m", "", error_text(error)).strip().partition("\n")[0]
        _report({"text": f"failed: {text[:_TEXT]}"})
        raise
    return 0


def end(code: int) -> int:
    """Returns the exit code; but a worker tells its guard and waits to be ended."""
    if _guard is not None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        for number in (signal.SIGINT, signal.SIGTERM, _TO_WORKER):
            signal.signal(number, signal.SIG_IGN)
        _report({"code": code})
        while True:
            signal.pause()
    return code


def _become_worker(parent: int, line: socket.socket, said: IO[bytes]) -> None:
    """Leaves the terminal's signals to the guard, and what C++ writes to stderr as well."""
    global _guard
    _guard = line
    os.setsid()
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    stderr = os.dup(2)
    os.dup2(said.fileno(), 2)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = open_stream(stderr, sys.stderr)


def _report(word: dict[str, object]) -> None:
    if _guard is not None:
        with contextlib.suppress(OSError):
            _guard.sendall(to_line(word))


def _fail(number: int, frame: object) -> None:
    """Raises the reason that the guard has for it."""
    with contextlib.suppress(BlockingIOError):
        if _guard is not None and (reason := _guard.recv(8 * _TEXT, socket.MSG_DONTWAIT)):
            raise _PeerLostError(reason.decode(errors="replace"))


class _PeerLostError(KdtrainError):
    """What is raised in a worker when its guard wants it to end."""


class _Guard:
    """What the guard knows of its worker, and what it does about it."""

    def __init__(
        self, worker: int, line: socket.socket, said: IO[bytes], heartbeat: Heartbeat, interrupts: SignalQueue
    ) -> None:
        self._worker = worker
        self._line = line
        self._said = said
        self._heartbeat = heartbeat
        self._interrupts = interrupts
        self._unread = b""
        self._code: int | None = None  # how the worker has ended: its exit code, or negative the signal
        self._text = "failed."  # what the worker says about that
        self._gone = False  # whether the process is no more
        self._stopped = False
        self._interrupted = 0.0  # when, on the monotonic clock
        line.setblocking(False)

    def watch(self) -> int:
        """Waits for the end of the worker, or brings it about; returns the exit code.

        Raises:
            KdtrainError: why the worker had to be ended, where it could not say so itself.
            KeyboardInterrupt: as well.
        """
        try:
            try:
                while self._code is None:
                    news = self._tick()
                    if news is not None:
                        return self._peer_lost(news)
                return self._ended(self._code)
            except KeyboardInterrupt as error:
                return self._interrupt(error)
        finally:
            self._kill()
            self._heartbeat.close()
            self._line.close()

    def _ended(self, code: int) -> int:
        """The worker has ended by itself."""
        if code == 0:
            self._heartbeat.say("done")
            self._wait(lambda: self._heartbeat.all_closed)
            return 0
        if code > 0:
            self._heartbeat.say("lost", self._text, code)
            self._part(_SETTLING + _CLOSING)
            return code
        if code == -signal.SIGABRT:  # what oneflow does when a peer has ended
            self._wait(lambda: self._heartbeat.news is not None, _SETTLING)
            if self._heartbeat.news is not None:
                raise self._failure(self._heartbeat.news)
        cause = f"was ended by signal {signal.Signals(-code).name}."
        self._heartbeat.say("lost", cause)
        self._part(_CLOSING)
        self._said.seek(0)
        said = self._said.read()[-_SAID:].decode(errors="replace").strip()
        words = f"process {self._heartbeat.rank} {cause}"
        raise KdtrainError(words + (f" It said:\n{said}" if said and code == -signal.SIGABRT else ""))

    def _peer_lost(self, news: News) -> int:
        """A peer has ended, and so will the worker."""
        if news.code is not None:
            self._wait(lambda: self._code is not None, _SETTLING)
        if self._code is None:
            error = self._failure(news)
            with contextlib.suppress(OSError):
                self._line.send(news.text.encode())
            self._end_worker(_TO_WORKER)
            self._part(_FAREWELL)
            if self._code is None or self._code < 0:
                raise error
            return error.exit_code if self._code > 0 else 0
        return self._ended(self._code)

    def _interrupt(self, error: KeyboardInterrupt) -> int:
        """Ctrl-C or SIGTERM. A second Ctrl-C comes out as it is."""
        try:
            self._interrupts.raise_within(_TICK)
        except KeyboardInterrupt as other:  # a launcher's SIGTERM may arrive ahead of its cause
            error = other if isinstance(error, Terminated) else error
        terminated = isinstance(error, Terminated)
        self._interrupted = time.monotonic()
        self._heartbeat.say("lost", "was terminated." if terminated else "was interrupted.")
        self._end_worker(signal.SIGTERM if terminated else signal.SIGINT)
        self._part(_FAREWELL)
        if self._code is None or self._code < 0:
            raise error
        return self._code

    def _failure(self, news: News) -> KdtrainError:
        """Passes on that a peer has ended: only rank 0 is connected to all of them."""
        self._heartbeat.say("lost", f"failed: {news.text}")
        error = KdtrainError(news.text)
        error.exit_code = news.code or 1
        return error

    def _end_worker(self, number: signal.Signals) -> None:
        """Asks the worker to end, and waits for it."""
        if self._code is None:
            os.kill(self._worker, number)
            os.kill(self._worker, signal.SIGCONT)  # one that was stopped has files to close, too
            self._wait(lambda: self._code is not None, _CLOSING)

    def _part(self, seconds: float) -> None:
        """Lets the peers close their files, before connections of the worker are closed."""
        self._heartbeat.say("closed")
        self._wait(lambda: self._heartbeat.all_closed, seconds)

    def _wait(self, reached: Callable[[], bool], seconds: float = float("inf")) -> None:
        deadline = time.monotonic() + seconds
        while not reached() and time.monotonic() < deadline:
            self._tick()

    def _tick(self) -> News | None:
        """Waits a moment for something to happen; returns the first peer's end, if one has ended.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM.
        """
        sources: list[socket.socket | int] = [*self._heartbeat.sockets]
        sources += [] if self._gone else [self._line]
        sources += [] if self._interrupts.reader is None else [self._interrupts.reader]
        select.select(sources, [], [], _TICK)
        self._look_at_worker()
        if not self._stopped:
            self._heartbeat.beat()
        self._heartbeat.listen()
        try:  # after listening: the peers may have got the same Ctrl-C, and be faster
            self._interrupts.raise_within(0.0)
        except KeyboardInterrupt as error:
            # Launchers send SIGTERM with Ctrl-C, and the kernel does when they end.
            again = not isinstance(error, Terminated) and time.monotonic() - self._interrupted > _AGAIN
            if self._interrupted == 0.0 or again:
                raise
        return self._heartbeat.news

    def _look_at_worker(self) -> None:
        if self._gone:
            return
        with contextlib.suppress(OSError):
            self._unread += self._line.recv(1 << 14)
            *lines, self._unread = self._unread.split(b"\n")
            for word in map(from_line, lines):
                self._text = str(word.get("text", self._text))
                self._code = word.get("code", self._code)
        number, status = os.waitpid(self._worker, os.WNOHANG | os.WUNTRACED | os.WCONTINUED)
        if number == 0:
            return
        if os.WIFSTOPPED(status) or os.WIFCONTINUED(status):
            self._stopped = os.WIFSTOPPED(status)
            return
        self._gone = True
        if self._code is None:
            self._code = os.waitstatus_to_exitcode(status)

    def _kill(self) -> None:
        """Ends the worker and what it has started."""
        with contextlib.suppress(OSError):
            os.killpg(self._worker, signal.SIGKILL)
        if not self._gone:
            with contextlib.suppress(OSError):
                os.kill(self._worker, signal.SIGKILL)
                os.waitpid(self._worker, 0)
