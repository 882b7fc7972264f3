"""The guard process of a rank, which ends the rank's worker when a peer has ended.

The guard is the process that was started. It forks the worker, in which the fit runs. The worker may
wait in C++ for ever. Meanwhile the guard receives heartbeats of its peers, the launcher's signals and
Ctrl-C. It ends the worker by a signal, so that the worker closes its files, and then by SIGKILL. A thread
of the worker could not do that: OneFlow holds the GIL while it connects the processes.

A worker that has finished waits until the guards have exchanged messages. Its exit closes OneFlow's
connections, which aborts the peers, and they have files to close first.
"""

from __future__ import annotations

import contextlib
import io
import os
import select
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from typing import IO

from kdtrain.cluster.heartbeat import MOST_TEXT, Heartbeat, PeerLoss, from_line, to_line
from kdtrain.errors import KdtrainError, Terminated, error_text
from kdtrain.runtime.console import open_stream
from kdtrain.runtime.signals import SignalQueue, die_with_parent, queue_signals

_TICK = 0.1  # seconds between two checks of the worker
_CLOSING = 2.5  # seconds for a worker to close its files
_FAREWELL = 1.0  # seconds for the peers to do so, after this guard's worker
_SETTLING = 2.5  # seconds for a worker to fail by itself with the error that a peer had
_AGAIN = 0.5  # seconds after which another Ctrl-C counts as a second one
_STDERR = 2000  # bytes of oneflow's stderr that are shown
_FAIL = signal.SIGUSR1  # makes the worker read the reason why it must fail, and raise it

_guard: socket.socket | None = None  # the connection to the guard; set in a worker only


def run_guarded(work: Callable[[], None], heartbeat: Heartbeat) -> int:
    """Runs ``work`` in a worker process, and ends that process when a peer has ended.

    This function returns in both processes.

    Returns:
        0 in the worker; the exit code of the rank in the guard.

    Raises:
        BaseException: in the worker, the exception of ``work``. ``end`` reports it to the guard.
    """
    with queue_signals() as signals, tempfile.TemporaryFile() as stderr_file:
        near, far = socket.socketpair()
        parent = os.getpid()
        worker = os.fork()
        if worker != 0:
            far.close()
            return _Guard(worker, near, stderr_file, heartbeat, signals).watch()
        _become_worker(parent, far, stderr_file)
    near.close()
    heartbeat.close()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have set it to be ignored
    signal.signal(_FAIL, _raise_reason)
    try:
        work()
    except Exception as error:
        if isinstance(error.__cause__, _PeerLostError):
            raise error.__cause__ from None  # the signal arrived in a hook, which is not at fault
        text = error_text(error).strip().partition("\n")[0]
        _report({"text": f"failed: {text[:MOST_TEXT]}"})
        raise
    return 0


def end(code: int) -> int:
    """Returns the exit code. In a worker, sends it to the guard and waits to be killed."""
    if _guard is not None:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        for number in (signal.SIGINT, signal.SIGTERM, _FAIL):
            signal.signal(number, signal.SIG_IGN)
        _report({"code": code})
        while True:
            signal.pause()
    return code


def _become_worker(parent: int, line: socket.socket, stderr_file: IO[bytes]) -> None:
    """Detaches this process from the terminal, and redirects what C++ writes to stderr into a file."""
    global _guard
    _guard = line
    os.setsid()
    die_with_parent(signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    stderr = os.dup(2)
    os.dup2(stderr_file.fileno(), 2)
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr = open_stream(stderr, sys.stderr)


def _report(message: dict[str, object]) -> None:
    if _guard is not None:
        with contextlib.suppress(OSError):
            _guard.sendall(to_line(message))


def _raise_reason(number: int, frame: object) -> None:
    """Raises the error that the guard has sent."""
    with contextlib.suppress(BlockingIOError):
        if _guard is not None and (reason := _guard.recv(8 * MOST_TEXT, socket.MSG_DONTWAIT)):
            raise _PeerLostError(reason.decode(errors="replace"))


class _PeerLostError(KdtrainError):
    """The error that a worker raises when its guard ends it."""


class _Guard:
    """The guard's side: the state of the worker, and the steps that end it."""

    def __init__(
        self,
        worker: int,
        line: socket.socket,
        stderr_file: IO[bytes],
        heartbeat: Heartbeat,
        signals: SignalQueue,
    ) -> None:
        self._worker = worker
        self._line = line
        self._stderr = stderr_file
        self._heartbeat = heartbeat
        self._signals = signals
        self._unread = b""
        self._code: int | None = None  # the worker's exit code once it has ended, negative for a signal
        self._text = "failed."  # the worker's message about its end
        self._gone = False  # whether the process has exited
        self._stopped = False
        self._interrupted = 0.0  # time on the monotonic clock
        line.setblocking(False)

    def watch(self) -> int:
        """Waits until the worker has ended, or ends it; returns the exit code.

        Raises:
            KdtrainError: the reason why the worker was ended, if the worker has not printed one.
            KeyboardInterrupt: Ctrl-C or SIGTERM, if the worker has not printed that.
        """
        try:
            try:
                while self._code is None:
                    loss = self._tick()
                    if loss is not None:
                        return self._peer_lost(loss)
                return self._ended(self._code)
            except KeyboardInterrupt as error:
                return self._interrupt(error)
        finally:
            self._kill()
            self._heartbeat.close()
            self._line.close()

    def _ended(self, code: int) -> int:
        """Handles the end of a worker that was not ended by this guard."""
        if code == 0:
            self._heartbeat.send_end("done")
            self._wait(lambda: self._heartbeat.all_closed)
            return 0
        if code > 0:
            self._heartbeat.send_end("lost", self._text, code)
            self._wait_for_peers(_SETTLING + _CLOSING)
            return code
        if code == -signal.SIGABRT:  # oneflow aborts when a peer has ended
            self._wait(lambda: self._heartbeat.peer_loss is not None, _SETTLING)
            if self._heartbeat.peer_loss is not None:
                raise self._failure(self._heartbeat.peer_loss)
        cause = f"was ended by signal {signal.Signals(-code).name}."
        self._heartbeat.send_end("lost", cause)
        self._wait_for_peers(_CLOSING)
        self._stderr.seek(0)
        output = self._stderr.read()[-_STDERR:].decode(errors="replace").strip()
        shown = f" Its stderr:\n{output}" if output and code == -signal.SIGABRT else ""
        raise KdtrainError(f"process {self._heartbeat.rank} {cause}{shown}")

    def _peer_lost(self, loss: PeerLoss) -> int:
        """Ends the worker because a peer has ended."""
        if loss.code is not None:
            self._wait(lambda: self._code is not None, _SETTLING)
        if self._code is None:
            error = self._failure(loss)
            with contextlib.suppress(OSError):
                self._line.send(loss.text.encode())
            self._end_worker(_FAIL)
            self._wait_for_peers(_FAREWELL)
            if self._code is None or self._code < 0:
                raise error
            return error.exit_code if self._code > 0 else 0
        return self._ended(self._code)

    def _interrupt(self, error: KeyboardInterrupt) -> int:
        """Handles Ctrl-C or SIGTERM. A second Ctrl-C is raised to the caller."""
        error = self._signals.cause_of(error, _TICK)
        terminated = isinstance(error, Terminated)
        self._interrupted = time.monotonic()
        self._heartbeat.send_end("lost", "was terminated." if terminated else "was interrupted.")
        self._end_worker(signal.SIGTERM if terminated else signal.SIGINT)
        self._wait_for_peers(_FAREWELL)
        if self._code is None or self._code < 0:
            raise error
        return self._code

    def _failure(self, loss: PeerLoss) -> KdtrainError:
        """Sends a peer's end to the other peers: only rank 0 is connected to all. Returns the error."""
        self._heartbeat.send_end("lost", f"failed: {loss.text}")
        error = KdtrainError(loss.text)
        error.exit_code = loss.code or 1
        return error

    def _end_worker(self, number: signal.Signals) -> None:
        """Sends the worker a signal, and waits for its end."""
        if self._code is None:
            os.kill(self._worker, number)
            os.kill(self._worker, signal.SIGCONT)  # a stopped worker has to run to close its files
            self._wait(lambda: self._code is not None, _CLOSING)

    def _wait_for_peers(self, seconds: float) -> None:
        """Waits until the peers have closed their files, before the worker's connections close."""
        self._heartbeat.send_end("closed")
        self._wait(lambda: self._heartbeat.all_closed, seconds)

    def _wait(self, reached: Callable[[], bool], seconds: float = float("inf")) -> None:
        deadline = time.monotonic() + seconds
        while not reached() and time.monotonic() < deadline:
            self._tick()

    def _tick(self) -> PeerLoss | None:
        """Waits for the next event, up to 0.1 s; returns the end of the first peer that has ended.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM.
        """
        sources: list[socket.socket | int] = [*self._heartbeat.sockets]
        sources += [] if self._gone else [self._line]
        sources += [] if self._signals.reader is None else [self._signals.reader]
        select.select(sources, [], [], _TICK)
        self._check_worker()
        if not self._stopped:
            self._heartbeat.beat()
        self._heartbeat.receive()
        try:  # after receiving: the peers may have received the same Ctrl-C earlier
            self._signals.raise_within(0.0)
        except KeyboardInterrupt as error:
            # Launchers send SIGTERM after Ctrl-C, and the kernel sends it when they end.
            again = not isinstance(error, Terminated) and time.monotonic() - self._interrupted > _AGAIN
            if self._interrupted == 0.0 or again:
                raise
        return self._heartbeat.peer_loss

    def _check_worker(self) -> None:
        if self._gone:
            return
        with contextlib.suppress(OSError):
            self._unread += self._line.recv(1 << 14)
            *lines, self._unread = self._unread.split(b"\n")
            for message in map(from_line, lines):
                self._text = str(message.get("text", self._text))
                self._code = message.get("code", self._code)
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
        """Kills the worker and the processes that it has started."""
        with contextlib.suppress(OSError):
            os.killpg(self._worker, signal.SIGKILL)
        if not self._gone:
            with contextlib.suppress(OSError):
                os.kill(self._worker, signal.SIGKILL)
                os.waitpid(self._worker, 0)
