"""What one client may ask of the service: how often, how much at a time, and how slowly."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

_CLIENTS = 10_000  # that are remembered before those are forgotten that have been quiet
_CLOSE = {"Connection": "close"}  # what is still to come of a body is not read
_REASON = 10  # times the longest body


@dataclass(frozen=True)
class Limits:
    """Bounds of the service.

    Attributes:
        rate: predictions per second for each client; twice as many may come at once.
        body: the longest body in bytes.
        head: seconds that the head of a request may take to arrive.
        seconds: how long a body may take to arrive.
    """

    rate: float = 30.0
    body: int = 10_000_000
    head: float = 10.0
    seconds: float = 15.0


@dataclass
class TokenBuckets:
    """One bucket for each client: a request takes a token, and ``rate`` tokens come back each second.

    Attributes:
        rate: tokens per second; a full bucket holds twice as many, but at least one.
        clock: seconds, from anywhere on.
    """

    rate: float
    clock: Callable[[], float] = time.monotonic
    _full_at: dict[str, float] = field(default_factory=dict)  # when each client's bucket is full again

    def take(self, client: str) -> float:
        """Takes a token; returns 0, or in how many seconds there will be one."""
        now = self.clock()
        if len(self._full_at) >= _CLIENTS:
            self._full_at = {name: at for name, at in self._full_at.items() if at > now}
        full_at = max(self._full_at.get(client, now), now) + 1 / self.rate
        wait = full_at - now - max(2.0, 1 / self.rate)
        if wait > 1e-9:
            return wait
        self._full_at[client] = full_at
        return 0.0

    def check(self, request: Request) -> None:
        """Takes a token for the client of a request.

        Raises:
            HTTPException: 429, there is none.
        """
        wait = self.take(request.client.host if request.client is not None else "")
        if wait > 0:
            raise HTTPException(
                429,
                f"too many requests: {self.rate:g} per second are allowed; try again in {wait:.1f} s.",
                {"Retry-After": str(math.ceil(wait))},
            )


async def read_body(request: Request, limits: Limits) -> bytes:
    """Returns the body of a request.

    Of one that is too long the rest is read and thrown away, within reason: most clients look for an
    answer only when they have sent everything. Those that wait to be told to go on are not.

    Raises:
        HTTPException: 413, it is too long; 408, it is too slow; 400, the client has gone.
    """
    too_long = HTTPException(413, f"the body is longer than {limits.body:,} bytes.", _CLOSE)
    announced = int(request.headers.get("content-length", "0"))  # a number, or it would not be HTTP
    waits = request.headers.get("expect", "").lower() == "100-continue"
    if announced > (limits.body if waits else _REASON * limits.body):
        raise too_long

    async def read() -> bytes:
        body, length = bytearray(), 0
        async for part in request.stream():
            length += len(part)
            if length <= limits.body:
                body += part
            elif length > _REASON * limits.body:
                break
        if length > limits.body:
            raise too_long
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), limits.seconds)
    except ClientDisconnect as error:
        raise HTTPException(400, "the body is not complete.", _CLOSE) from error  # nobody will read it
    except asyncio.TimeoutError as error:
        sentence = f"the body had not arrived after {limits.seconds:g} seconds."
        raise HTTPException(408, sentence, _CLOSE) from error
