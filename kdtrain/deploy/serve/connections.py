"""uvicorn's connections with a time limit for requests: without one, uvicorn waits for ever."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

_MOST_WAITING = 200  # connections without a complete head; one more closes the oldest of them
_BODY = json.dumps({"error": "the request had not arrived in time."}).encode()
_TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_BODY), _BODY)
)


def connections(seconds: float) -> type[H11Protocol]:
    """Returns a connection class for uvicorn's ``http`` setting, with a time limit for a request's head.

    The time starts when a client connects; after a response, it starts with the next byte. It ends when the
    head is complete. A body has its own limit, ``limits.read_body``. Between two requests on a connection,
    uvicorn closes it after five seconds without a byte.

    Args:
        seconds: the time limit.
    """
    waiting: OrderedDict[Connection, asyncio.TimerHandle] = OrderedDict()

    class Connection(H11Protocol):
        """A client's connection."""

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)  # type: ignore[arg-type]  # uvicorn narrows it
            self._wait()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.cycle is None or self.cycle.response_complete:
                self._wait()
            else:
                self._stop_waiting()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_waiting()
            super().connection_lost(exc)

        def _wait(self) -> None:
            """Starts the timer unless it runs already."""
            if self in waiting or self.transport.is_closing():
                return
            waiting[self] = self.loop.call_later(seconds, self._give_up)
            if len(waiting) > _MOST_WAITING:
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
