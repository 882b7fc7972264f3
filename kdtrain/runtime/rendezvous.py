"""How processes that train together find each other, before oneflow looks for them.

Rank 0 listens where oneflow is to listen later, at MASTER_ADDR and MASTER_PORT, until the others have
come. OneFlow itself would look for ten minutes, deaf to Ctrl-C, and abort where the port is taken.
"""

from __future__ import annotations

import contextlib
import logging
import secrets
import select
import socket
import time
from collections.abc import Mapping
from typing import Any

from kdtrain.errors import KdtrainError, UsageError
from kdtrain.runtime.heartbeat import SILENCE, TOKEN_BYTES, Address, Heartbeat, Peer, from_line, to_line

logger = logging.getLogger(__name__)

LIMIT = 90.0
"""Seconds that the processes have to find each other; people start them by hand, one after another."""

_HELLO_BYTES = 1 << 16  # of what a visitor says first, at most
_HELLO_SECONDS = 5.0  # that a visitor has for it
_STRANGERS = 16  # visitors at once, beyond those expected
_FACT = 80  # characters of a differing setting that are shown
_RETRY = 0.2  # seconds between two tries to connect
_PATIENCE = 3.0  # seconds of waiting after which a person wants to know what for

Facts = Mapping[str, str]


def join_group(
    rank: int, size: int, address: Address, facts: Facts, *, limit: float = LIMIT, silence: float = SILENCE
) -> Heartbeat:
    """Connects this process with the others. Afterwards nobody listens at ``address``.

    Args:
        rank: this process's number.
        size: how many there are.
        address: where rank 0 listens: host and port.
        facts: what has to be the same in all of them, by the name that a message calls it.
        limit: seconds until this is given up.
        silence: as in ``Heartbeat``.

    Raises:
        KdtrainError: a process does not come, or cannot be reached.
        UsageError: the address cannot be used, or the facts differ.
    """
    try:
        host = str(socket.getaddrinfo(*address, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise UsageError(f"--master_addr {address[0]} is not known: {error.strerror or error}.") from None
    waiting = _Waiting((host, address[1]), limit)
    if rank > 0:
        return _join(rank, size, facts, waiting, silence)
    with contextlib.ExitStack() as opened:
        datagrams = opened.enter_context(_bound(waiting.where, socket.SOCK_DGRAM))
        peers = _gather(size, facts, waiting)
        opened.pop_all()
    return Heartbeat(0, peers, datagrams, _welcome(peers), silence)


class _Waiting:
    """How long to wait, and where; says so once if it takes long."""

    def __init__(self, where: Address, limit: float) -> None:
        self.where = where
        self.limit = limit
        self._began = time.monotonic()
        self._said = False

    @property
    def left(self) -> float:
        """Seconds until the end; 0 when it has come."""
        return max(0.0, self._began + self.limit - time.monotonic())

    def goes_on(self, rank: int) -> bool:
        """Returns whether to wait for process ``rank`` any longer."""
        if not self._said and self.limit - self.left > _PATIENCE:
            self._said = True
            logger.info(f"Waiting for process {rank} at {self}, for up to {self.limit:g} s.")
        return self.left > 0

    def __str__(self) -> str:
        return f"{self.where[0]}:{self.where[1]}"


# ------------------------------------------------------------------------------------- rank 0's side


def _bound(where: Address, kind: socket.SocketKind) -> socket.socket:
    opened = socket.socket(socket.AF_INET, kind)
    try:
        if kind is socket.SOCK_STREAM:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(where)
    except OSError as error:
        opened.close()
        raise UsageError(
            f"process 0 cannot listen at {where[0]}:{where[1]} ({error.strerror}): --master_addr has to be "
            "an address of its machine, --master_port a port that is free there."
        ) from None
    return opened


def _gather(size: int, facts: Facts, waiting: _Waiting) -> list[Peer]:
    """Returns all others, once they have come; tells those who have come if it fails."""
    peers: dict[int, Peer] = {}
    visitors: list[_Visitor] = []
    with _bound(waiting.where, socket.SOCK_STREAM) as listener:
        listener.listen(size + _STRANGERS)
        try:
            while missing := [rank for rank in range(1, size) if _is_missing(peers.get(rank))]:
                if not waiting.goes_on(missing[0]):
                    raise KdtrainError(
                        f"process {missing[0]} has not come to {waiting} within {waiting.limit:g} seconds: "
                        "start it with the same --master_addr and --master_port, or see what it says there."
                    )
                for visitor, hello in _heard(listener, visitors, size):
                    peer = _admitted(visitor, hello, size, facts, peers)
                    peers[peer.rank] = peer
        except BaseException as error:
            reason = str(error) or "process 0 was interrupted."
            for line in [peer.line for peer in peers.values()] + [visitor.line for visitor in visitors]:
                _refuse(line, reason)
            raise
        for visitor in visitors:
            visitor.line.close()
    return [peers[rank] for rank in sorted(peers)]


def _is_missing(peer: Peer | None) -> bool:
    """Returns whether a process has not come yet, or has ended since it came."""
    if peer is not None:
        peer.read()
    return peer is None or peer.lost is not None


class _Visitor:
    """Somebody who has connected, and has not said yet who it is."""

    def __init__(self, line: socket.socket, host: str) -> None:
        self.line = line
        self.host = host
        self._since = time.monotonic()
        self._unread = b""
        line.setblocking(False)

    def hello(self) -> Mapping[str, Any] | None:
        """Returns what it says, once it has said it.

        Raises:
            OSError: it has gone, takes too long, says too much or what is no hello.
        """
        with contextlib.suppress(BlockingIOError):
            data = self.line.recv(_HELLO_BYTES)
            self._unread += data
            if not data or len(self._unread) > _HELLO_BYTES:
                raise ConnectionError
        if b"\n" not in self._unread:
            if time.monotonic() - self._since > _HELLO_SECONDS:
                raise TimeoutError
            return None
        word = from_line(self._unread.partition(b"\n")[0])
        if type(word.get("rank")) is not int or not isinstance(word.get("facts"), dict):
            raise ConnectionError
        return word


def _heard(
    listener: socket.socket, visitors: list[_Visitor], size: int
) -> list[tuple[_Visitor, Mapping[str, Any]]]:
    """Waits a moment for visitors and for what they say; returns those who have said who they are."""
    ready, _, _ = select.select([listener, *(visitor.line for visitor in visitors)], [], [], _RETRY)
    if listener in ready:
        with contextlib.suppress(OSError):
            line, (host, _) = listener.accept()
            visitors.append(_Visitor(line, host))
    found = []
    for visitor in list(visitors):
        try:
            hello = visitor.hello()
        except OSError:
            visitor.line.close()
        else:
            if hello is None:
                continue
            found.append((visitor, hello))
        visitors.remove(visitor)
    while len(visitors) > size + _STRANGERS:
        visitors.pop(0).line.close()
    return found


def _admitted(
    visitor: _Visitor, hello: Mapping[str, Any], size: int, facts: Facts, peers: Mapping[int, Peer]
) -> Peer:
    """Returns the peer that a visitor is.

    Raises:
        UsageError: it is not as it should be.
    """
    peer = Peer(hello["rank"], visitor.host, visitor.line)
    theirs = {str(name): str(value) for name, value in hello["facts"].items()}
    different = sorted(name for name in {*facts, *theirs} if facts.get(name) != theirs.get(name))
    earlier, problem = peers.get(peer.rank), None
    if hello.get("size") != size or not 0 < peer.rank < size:
        problem = f"{peer.name} of {hello.get('size')} has come, and there should be {size}"
    elif not _is_missing(earlier):  # it may have gone, and have been started again
        problem = f"{peer.name} has come twice"
    elif different:
        ours, other = (some.get(different[0], "not set")[:_FACT] for some in (facts, theirs))
        problem = f"{different[0]} is {ours} in process 0, and {other} in {peer.name}"
    if problem is not None:
        problem += ". Processes that train together need the same settings, and a number each."
        _refuse(peer.line, problem)
        raise UsageError(problem)
    if earlier is not None:
        earlier.line.close()
    return peer


def _refuse(line: socket.socket, reason: str) -> None:
    with contextlib.suppress(OSError):
        line.send(to_line({"refused": reason}))
    line.close()


def _welcome(peers: list[Peer]) -> bytes:
    """Tells all peers that everybody is there; returns the word by which they know each other's datagrams."""
    token = secrets.token_bytes(TOKEN_BYTES)
    for peer in peers:
        with contextlib.suppress(OSError):  # who has gone meanwhile is soon missed
            peer.line.send(to_line({"token": token.hex()}))
        peer.heard = time.monotonic()
    return token


# ------------------------------------------------------------------------------------ the others' side


def _join(rank: int, size: int, facts: Facts, waiting: _Waiting, silence: float) -> Heartbeat:
    hello = to_line({"rank": rank, "size": size, "facts": dict(facts)})
    reason = "no answer"
    while waiting.goes_on(0):
        with contextlib.ExitStack() as opened:
            line = opened.enter_context(socket.socket())
            try:
                token = _token(line, hello, waiting)
            except OSError as error:
                reason = error.strerror or str(error)
                time.sleep(_RETRY)
                continue
            datagrams = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            opened.pop_all()
            peer = Peer(0, waiting.where[0], line, home=waiting.where)
            return Heartbeat(rank, [peer], datagrams, token, silence)
    raise KdtrainError(
        f"process 0 was not found at {waiting} within {waiting.limit:g} seconds ({reason}): start it there, "
        "and see that --master_addr, --master_port and the network are right."
    )


def _token(line: socket.socket, hello: bytes, waiting: _Waiting) -> bytes:
    """Says hello to process 0; returns what it answers once all others have come as well.

    Raises:
        OSError: it cannot be reached, or has gone again.
        KdtrainError: it refuses this process, or is no process 0.
    """
    line.settimeout(max(_RETRY, min(_HELLO_SECONDS, waiting.left)))
    line.connect(waiting.where)
    if line.getsockname() == line.getpeername():  # a port above 32767 may be connected to itself
        raise ConnectionRefusedError(None, "Connection refused")
    line.sendall(hello)
    answer = b""
    while b"\n" not in answer and len(answer) <= _HELLO_BYTES and waiting.goes_on(0):
        line.settimeout(_RETRY)
        with contextlib.suppress(TimeoutError):
            data = line.recv(_HELLO_BYTES)
            if not data:
                raise ConnectionResetError(None, "it has closed the connection")
            answer += data
    if not answer:
        raise TimeoutError(None, "it does not answer")
    word = from_line(answer.partition(b"\n")[0])
    if "refused" in word:
        raise KdtrainError(str(word["refused"]))
    try:
        token = bytes.fromhex(str(word["token"]))
    except (KeyError, ValueError):
        token = b""
    if len(token) != TOKEN_BYTES:
        raise KdtrainError(
            f"what answers at {waiting} is not kdtrain's process 0: is the port another service's?"
        )
    return token
