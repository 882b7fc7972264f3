"""Rendezvous of the processes that train together, before oneflow connects them.

Rank 0 listens at MASTER_ADDR and MASTER_PORT, where oneflow listens later, until all others have
connected. OneFlow itself would try for ten minutes, ignore Ctrl-C meanwhile, and abort if the port is
taken.
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

from kdtrain.cluster.heartbeat import SILENCE, TOKEN_BYTES, Address, Heartbeat, Peer, from_line, to_line
from kdtrain.errors import KdtrainError, UsageError, os_reason

logger = logging.getLogger(__name__)

LIMIT = 90.0
"""Seconds for the rendezvous. Users may start the processes by hand, one after another."""

_HELLO_BYTES = 1 << 16  # largest first message
_HELLO_SECONDS = 5.0  # for the first message to arrive
_FOREIGN = 16  # connections at once, beyond those of the group
_FACT = 80  # characters shown of a setting that differs
_RETRY = 0.2  # seconds between two attempts to connect
_QUIET = 3.0  # seconds of waiting before a message about it is logged

Facts = Mapping[str, str]


def join_group(
    rank: int, size: int, address: Address, facts: Facts, *, limit: float = LIMIT, silence: float = SILENCE
) -> Heartbeat:
    """Connects this process with its group. Afterwards the port at ``address`` is free.

    Args:
        rank: this process's rank.
        size: the number of processes.
        address: host and port at which rank 0 listens.
        facts: values that must be equal in all processes, by their name in error messages.
        limit: seconds after which the attempt fails.
        silence: as in ``Heartbeat``.

    Raises:
        KdtrainError: a process does not connect, or cannot be reached.
        UsageError: the address cannot be used, or the facts differ.
    """
    try:
        host = str(socket.getaddrinfo(*address, socket.AF_INET, socket.SOCK_STREAM)[0][4][0])
    except OSError as error:
        raise UsageError(f"--master_addr {address[0]} is not known: {os_reason(error)}.") from None
    waiting = _Waiting((host, address[1]), limit)
    if rank > 0:
        return _join(rank, size, facts, waiting, silence)
    with contextlib.ExitStack() as opened:
        datagrams = opened.enter_context(_bound(waiting.where, socket.SOCK_DGRAM))
        peers = _gather(size, facts, waiting)
        opened.pop_all()
    return Heartbeat(0, peers, datagrams, _welcome(peers), silence)


class _Waiting:
    """A deadline and an address; logs a message once if waiting takes long."""

    def __init__(self, where: Address, limit: float) -> None:
        self.where = where
        self.limit = limit
        self._began = time.monotonic()
        self._logged = False

    @property
    def left(self) -> float:
        """Seconds until the deadline, at least 0."""
        return max(0.0, self._began + self.limit - time.monotonic())

    def goes_on(self, rank: int) -> bool:
        """Returns whether there is time left to wait for process ``rank``."""
        if not self._logged and self.limit - self.left > _QUIET:
            self._logged = True
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
            f"process 0 cannot listen at {where[0]}:{where[1]} ({error.strerror}): --master_addr must be "
            "an address of its machine, and --master_port a free port there."
        ) from None
    return opened


def _gather(size: int, facts: Facts, waiting: _Waiting) -> list[Peer]:
    """Returns the peers of rank 0 once all have connected. A failure is sent to those that have."""
    peers: dict[int, Peer] = {}
    connections: list[_Connection] = []
    with _bound(waiting.where, socket.SOCK_STREAM) as listener:
        listener.listen(size + _FOREIGN)
        try:
            while missing := [rank for rank in range(1, size) if _is_missing(peers.get(rank))]:
                if not waiting.goes_on(missing[0]):
                    raise KdtrainError(
                        f"process {missing[0]} has not connected to {waiting} within {waiting.limit:g} "
                        "seconds: give it the same --master_addr and --master_port, or read its errors."
                    )
                for connection, hello in _introductions(listener, connections, size):
                    peer = _admitted(connection, hello, size, facts, peers)
                    peers[peer.rank] = peer
        except BaseException as error:
            reason = str(error) or "process 0 was interrupted."
            for line in [peer.line for peer in peers.values()] + [
                connection.line for connection in connections
            ]:
                _refuse(line, reason)
            raise
        for connection in connections:
            connection.line.close()
    return [peers[rank] for rank in sorted(peers)]


def _is_missing(peer: Peer | None) -> bool:
    """Returns whether a process has not connected yet, or has ended since."""
    if peer is not None:
        peer.read()
    return peer is None or peer.lost is not None


class _Connection:
    """A connection whose first message has not arrived."""

    def __init__(self, line: socket.socket, host: str) -> None:
        self.line = line
        self.host = host
        self._since = time.monotonic()
        self._unread = b""
        line.setblocking(False)

    def hello(self) -> Mapping[str, Any] | None:
        """Returns the first message, or None if it has not arrived yet.

        Raises:
            OSError: the connection is closed, or the message is late, too long or malformed.
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
        message = from_line(self._unread.partition(b"\n")[0])
        if type(message.get("rank")) is not int or not isinstance(message.get("facts"), dict):
            raise ConnectionError
        return message


def _introductions(
    listener: socket.socket, connections: list[_Connection], size: int
) -> list[tuple[_Connection, Mapping[str, Any]]]:
    """Waits shortly for connections and first messages; returns the connections with a complete message."""
    ready, _, _ = select.select([listener, *(connection.line for connection in connections)], [], [], _RETRY)
    if listener in ready:
        with contextlib.suppress(OSError):
            line, (host, _) = listener.accept()
            connections.append(_Connection(line, host))
    introduced = []
    for connection in list(connections):
        try:
            hello = connection.hello()
        except OSError:
            connection.line.close()
        else:
            if hello is None:
                continue
            introduced.append((connection, hello))
        connections.remove(connection)
    while len(connections) > size + _FOREIGN:
        connections.pop(0).line.close()
    return introduced


def _admitted(
    connection: _Connection, hello: Mapping[str, Any], size: int, facts: Facts, peers: Mapping[int, Peer]
) -> Peer:
    """Returns the peer of a connection.

    Raises:
        UsageError: its rank, the size of its group or its facts are wrong.
    """
    peer = Peer(hello["rank"], connection.host, connection.line)
    peer_facts = {str(name): str(value) for name, value in hello["facts"].items()}
    different = sorted(name for name in {*facts, *peer_facts} if facts.get(name) != peer_facts.get(name))
    earlier, problem = peers.get(peer.rank), None
    if hello.get("size") != size or not 0 < peer.rank < size:
        problem = f"{peer.name} of {hello.get('size')} has connected, but this group has {size}"
    elif not _is_missing(earlier):  # a process that has ended may be started again
        problem = f"{peer.name} connected twice"
    elif different:
        name = different[0]
        own_value = facts.get(name, "not set")[:_FACT]
        peer_value = peer_facts.get(name, "not set")[:_FACT]
        problem = f"{name} is {own_value} in process 0, and {peer_value} in {peer.name}"
    if problem is not None:
        problem += ". All processes of a group need the same settings, and a rank of their own."
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
    """Sends all peers the token that their datagrams begin with, once all have connected; returns it."""
    token = secrets.token_bytes(TOKEN_BYTES)
    for peer in peers:
        with contextlib.suppress(OSError):  # a peer that has ended is detected soon
            peer.line.send(to_line({"token": token.hex()}))
        peer.heard = time.monotonic()
    return token


# ------------------------------------------------------------------------------------ the other ranks' side


def _join(rank: int, size: int, facts: Facts, waiting: _Waiting, silence: float) -> Heartbeat:
    hello = to_line({"rank": rank, "size": size, "facts": dict(facts)})
    reason = "no answer"
    while waiting.goes_on(0):
        with contextlib.ExitStack() as opened:
            line = opened.enter_context(socket.socket())
            try:
                token = _token(line, hello, waiting)
            except OSError as error:
                reason = os_reason(error)
                time.sleep(_RETRY)
                continue
            datagrams = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            opened.pop_all()
            peer = Peer(0, waiting.where[0], line, home=waiting.where)
            return Heartbeat(rank, [peer], datagrams, token, silence)
    raise KdtrainError(
        f"process 0 was not found at {waiting} within {waiting.limit:g} seconds ({reason}): start it there, "
        "and check --master_addr, --master_port and the network."
    )


def _token(line: socket.socket, hello: bytes, waiting: _Waiting) -> bytes:
    """Introduces this process to rank 0; returns the token, which rank 0 sends once all have connected.

    Raises:
        OSError: rank 0 cannot be reached, or has closed the connection.
        KdtrainError: rank 0 refuses this process, or another program listens there.
    """
    line.settimeout(max(_RETRY, min(_HELLO_SECONDS, waiting.left)))
    line.connect(waiting.where)
    if line.getsockname() == line.getpeername():  # the kernel may connect a port above 32767 to itself
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
    message = from_line(answer.partition(b"\n")[0])
    if "refused" in message:
        raise KdtrainError(str(message["refused"]))
    try:
        token = bytes.fromhex(str(message["token"]))
    except (KeyError, ValueError):
        token = b""
    if len(token) != TOKEN_BYTES:
        raise KdtrainError(
            f"the program at {waiting} is not kdtrain's process 0: another service may use the port."
        )
    return token
