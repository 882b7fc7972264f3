"""Limits of the service: rate of predictions, size and time of a body, memory of unread responses."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

_MOST_CLIENTS = 10_000  # from this number on, those that are idle are dropped
_CLOSE = {"Connection": "close"}  # the rest of a body is not read
_DRAINED = 10  # times the longest body
_SMALL = 100_000  # bytes of a body that are read at once


@dataclass(frozen=True)
class Limits:
    """Limits of the service.

    Attributes:
        rate: predictions per second for each client; twice as many may arrive at once.
        body: the longest body in bytes.
        head: seconds in which the head of a request must arrive.
        seconds: seconds in which a body must arrive, and in which a client must read a part of a response.
        unread: bytes of responses that all clients together may leave unread.
    """

    rate: float = 30.0
    body: int = 10_000_000
    head: float = 10.0
    seconds: float = 15.0
    unread: int = 50_000_000


class RateLimit:
    """A limit of requests per client: the generic cell rate algorithm (ITU-T I.371, annex A).

    Each request moves its client's theoretical arrival time ``1 / rate`` seconds ahead, counted from now if
    it lies in the past. A request that would move it more than two seconds ahead of now is refused. So
    ``2 * rate`` requests may arrive at once, and one always may.

    Args:
        rate: requests per second.
        clock: the time in seconds, from any origin.
    """

    def __init__(self, rate: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._interval, self._clock = 1 / rate, clock
        self._arrivals: dict[str, float] = {}  # theoretical arrival time by client

    def wait(self, client: str) -> float:
        """Counts a request of a client; returns 0, or the seconds after which it will be admitted."""
        now = self._clock()
        if len(self._arrivals) >= _MOST_CLIENTS:
            self._arrivals = {name: arrival for name, arrival in self._arrivals.items() if arrival > now}
        arrival = max(self._arrivals.get(client, now), now) + self._interval
        wait = arrival - now - max(2.0, self._interval)
        if wait > 1e-9:
            return wait
        self._arrivals[client] = arrival
        return 0.0


async def read_body(request: Request, limits: Limits, large: Callable[[], Awaitable[object]]) -> bytes:
    """Returns the body of a request.

    After the first 100 KB, ``large`` is awaited, without a limit of time: it bounds the memory of all bodies.

    An oversized body is drained, up to 10 times the limit, because most clients read the response only
    after sending. ``Expect: 100-continue`` clients are refused at once.

    Raises:
        HTTPException: 413, it is too long; 408, it is too slow; 400, the client has disconnected.
    """
    too_long = HTTPException(413, f"the body is longer than {limits.body:,} bytes.", _CLOSE)
    announced = int(request.headers.get("content-length", "0"))  # h11 refuses what is not a number
    waits = request.headers.get("expect", "").lower() == "100-continue"
    if announced > (limits.body if waits else _DRAINED * limits.body):
        raise too_long

    parts, body, length = request.stream(), bytearray(), 0

    async def read(most: int) -> None:
        nonlocal length
        async for part in parts:
            length += len(part)
            if length <= limits.body:
                body.extend(part)
            if length > most:
                break

    try:
        await asyncio.wait_for(read(_SMALL), limits.seconds)
        if length > _SMALL:
            await large()
            await asyncio.wait_for(read(_DRAINED * limits.body), limits.seconds)
    except ClientDisconnect as error:
        raise HTTPException(400, "the body is not complete.", _CLOSE) from error
    except asyncio.TimeoutError as error:
        raise HTTPException(
            408, f"the body had not arrived after {limits.seconds:g} seconds.", _CLOSE
        ) from error
    if length > limits.body:
        raise too_long
    return bytes(body)
