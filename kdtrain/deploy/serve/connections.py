"""uvicorn's server and connections with limits of number, time and memory: uvicorn itself has none."""

from __future__ import annotations

import asyncio
import ctypes
import functools
import json
import resource
import socket
from collections import OrderedDict

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kdtrain.deploy.serve.limits import Limits

_MOST = 2000  # connections; at most half of the files that this process may open
_MOST_WAITING = 200  # connections without a complete head, at most half of all; one more closes the oldest
_SLOWEST_READER = 10_000  # bytes per second
_PAUSE = 0.05  # seconds between two attempts to accept a connection when there are too many
_BODY = json.dumps({"error": "the request had not arrived in time."}).encode()
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


class Server(uvicorn.Server):
    """uvicorn's server, which leaves connections beyond its limit in the kernel's queue.

    asyncio's own server accepts until no file can be opened, and then prints a traceback for each of the
    clients that wait.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begins to accept connections."""
        await super().startup(sockets=[])
        self._accepting = [asyncio.create_task(self._accept(listener)) for listener in sockets or []]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Ends accepting, then as uvicorn does."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        await super().shutdown(sockets)

    async def _accept(self, listener: socket.socket) -> None:
        loop, most = asyncio.get_running_loop(), _most_connections()
        make = functools.partial(
            self.config.http_protocol_class,
            config=self.config,  # type: ignore[call-arg]  # uvicorn says no more than asyncio.Protocol
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        listener.setblocking(False)
        listener.listen(self.config.backlog)
        while True:
            while len(self.server_state.connections) >= most:
                await asyncio.sleep(_PAUSE)
            try:
                client, _ = await loop.sock_accept(listener)
                await loop.connect_accepted_socket(make, client)
            except OSError:  # no file can be opened, or the client has gone
                await asyncio.sleep(_PAUSE)


def _most_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return min(_MOST, files // 2)


async def give_back_memory() -> None:
    """Returns freed memory to the system: glibc keeps the pieces between others that are in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def connections(limits: Limits) -> type[H11Protocol]:
    """Returns a connection class for uvicorn's ``http`` setting, with limits for requests and responses.

    The time for the head of a request starts when a client connects; after a response, it starts with the
    next byte. It ends when the head is complete. A body has its own limit, ``limits.read_body``. Between two
    requests on a connection, uvicorn closes it after five seconds without a byte.

    A client that reads its response too slowly is disconnected. So is the one that has waited longest, when
    all clients together have left more unread than ``limits.unread``.

    Args:
        limits: the limits.
    """
    waiting: OrderedDict[Connection, asyncio.TimerHandle] = OrderedDict()
    unread: OrderedDict[Connection, asyncio.TimerHandle] = OrderedDict()
    most_waiting = min(_MOST_WAITING, _most_connections() // 2)

    class Connection(H11Protocol):
        """A client's connection."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn narrows it
            self.transport.set_write_buffer_limits(0)  # so that any unread byte pauses writing
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._wait()
            else:
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            self._stop_watching()
            super().connection_lost(exc)

        def pause_writing(self) -> None:
            """Starts to watch a client that has not read a whole response yet."""
            super().pause_writing()
            self._watch_reader()
            while len(unread) > 1 and sum(client.unread() for client in unread) > limits.unread:
                next(iter(unread)).abort()

        def resume_writing(self) -> None:
            self._stop_watching()
            super().resume_writing()

        def unread(self) -> int:
            """Returns the bytes that the client has not read, without those in the kernel."""
            return self.transport.get_write_buffer_size()

        def abort(self) -> None:
            """Disconnects the client, and drops what it has not read."""
            self._stop_watching()
            self.transport.abort()

        def _watch_reader(self) -> None:
            """Starts, or starts again, the time in which the client has to read something."""
            enough = self.unread() - _SLOWEST_READER * limits.seconds
            unread[self] = self.loop.call_later(limits.seconds, self._check_reader, enough)

        def _check_reader(self, enough: float) -> None:
            if self.unread() > max(0, enough):
                self.abort()
            else:
                self._watch_reader()

        def _stop_watching(self) -> None:
            timer = unread.pop(self, None)
            if timer is not None:
                timer.cancel()

        def _wait(self) -> None:
            """Starts the timer unless it runs already."""
            if self in waiting or self.transport.is_closing():
                return
            waiting[self] = self.loop.call_later(limits.head, self._give_up)
            if len(waiting) > most_waiting:
                next(iter(waiting))._give_up()

        def _stop_waiting(self) -> None:
            timer = waiting.pop(self, None)
            if timer is not None:
                timer.cancel()

        def _give_up(self) -> None:
            self._stop_waiting()
            if self.conn.our_state is h11.IDLE:  # neither in a response nor in the rest of a body
                self.transport.write(_TOO_SLOW)
            self.transport.close()

    return Connection
