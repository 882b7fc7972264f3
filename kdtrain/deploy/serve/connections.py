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
from uvicorn.server import ServerState

from kdtrain.deploy.serve.requests import Limits

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

    def __init__(self, config: uvicorn.Config, limits: Limits) -> None:
        super().__init__(config)
        self._clients = _Clients(limits)

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
        loop = asyncio.get_running_loop()
        make = functools.partial(_Connection, self._clients, self.config, self.server_state)
        listener.setblocking(False)
        listener.listen(self.config.backlog)
        while True:
            while len(self.server_state.connections) >= self._clients.most:
                await asyncio.sleep(_PAUSE)
            try:
                client, _ = await loop.sock_accept(listener)
                await loop.connect_accepted_socket(make, client)
            except OSError:  # no file can be opened, or the client has gone
                await asyncio.sleep(_PAUSE)


def _most_connections() -> int:
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST if files == resource.RLIM_INFINITY else min(_MOST, files // 2)


async def give_back_memory() -> None:
    """Returns freed memory to the system: glibc keeps the pieces between others that are in use."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


class _Clients:
    """The connections that wait for a request, or whose response has not been read, oldest first."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.most = _most_connections()
        self.most_waiting = min(_MOST_WAITING, self.most // 2)
        self.waiting: OrderedDict[_Connection, asyncio.TimerHandle] = OrderedDict()
        self.unread: OrderedDict[_Connection, asyncio.TimerHandle] = OrderedDict()


class _Connection(H11Protocol):
    """A client's connection, with limits for requests and responses.

    The time for the head of a request starts when a client connects; after a response, it starts with the
    next byte. It ends when the head is complete. A body has its own limit, ``limits.read_body``. Between two
    requests on a connection, uvicorn closes it after five seconds without a byte.

    A client that reads its response too slowly is disconnected. So is the one that has waited longest, when
    all clients together have left more unread than ``Limits.unread``.
    """

    def __init__(self, clients: _Clients, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config, state, {})
        self._clients = clients

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
        unread, most = self._clients.unread, self._clients.limits.unread
        while len(unread) > 1 and sum(client.unread() for client in unread) > most:
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
        seconds = self._clients.limits.seconds
        enough = self.unread() - _SLOWEST_READER * seconds
        self._clients.unread[self] = self.loop.call_later(seconds, self._check_reader, enough)

    def _check_reader(self, enough: float) -> None:
        if self.unread() > max(0, enough):
            self.abort()
        else:
            self._watch_reader()

    def _stop_watching(self) -> None:
        timer = self._clients.unread.pop(self, None)
        if timer is not None:
            timer.cancel()

    def _wait(self) -> None:
        """Starts the timer unless it runs already."""
        waiting = self._clients.waiting
        if self in waiting or self.transport.is_closing():
            return
        waiting[self] = self.loop.call_later(self._clients.limits.head, self._give_up)
        if len(waiting) > self._clients.most_waiting:
            next(iter(waiting))._give_up()

    def _stop_waiting(self) -> None:
        timer = self._clients.waiting.pop(self, None)
        if timer is not None:
            timer.cancel()

    def _give_up(self) -> None:
        self._stop_waiting()
        if self.conn.our_state is h11.IDLE:  # neither in a response nor in the rest of a body
            self.transport.write(_TOO_SLOW)
        self.transport.close()
