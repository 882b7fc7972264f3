"""Heartbeats between the ranks of a fit, by which each detects that another one has ended.

OneFlow's collectives wait for ever if a network is cut or a process is stopped. These connections are
separate from OneFlow's. Rank 0 is connected to each other rank:

* A TCP connection carries a message at the end. The kernel closes it when a process is killed.
* UDP datagrams carry a heartbeat each second. TCP carries one, too, for networks that block UDP. TCP alone
  is too slow: its retransmission delays double, so after a cut of 30 s it sends again 51 s after the cut.

Messages are JSON lines of bounded size.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import secrets
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

SILENCE = 40.0
"""Seconds without a heartbeat until a process counts as lost. Links may be cut for 30 s."""

TOKEN_BYTES = 16

MOST_TEXT = 500
"""Characters of the text in a message."""

_BEAT = 1.0  # seconds between two beats
_MESSAGE_BYTES = 1 << 12  # largest message
_DATAGRAMS = 100  # read at once: a foreign program may send many

Address = tuple[str, int]


@dataclass(frozen=True)
class PeerLoss:
    """The unplanned end of a peer, reported or assumed.

    Attributes:
        text: a sentence that names the peer.
        code: its exit code, if it has failed by itself; this process may soon fail with it.
    """

    text: str
    code: int | None = None


@dataclass
class Peer:
    """The connection to another process, and its state.

    Attributes:
        rank: its rank.
        host: its IP address.
        line: the TCP connection.
        heard: time of its last heartbeat, on the monotonic clock.
        home: address that its datagrams come from; None until the first one.
        lost: its end, if that was not planned.
        closed: whether it needs no peer any more: its files are closed, or it is lost.
    """

    rank: int
    host: str
    line: socket.socket
    heard: float = field(default_factory=time.monotonic)
    home: Address | None = None
    lost: PeerLoss | None = None
    closed: bool = False
    unread: bytes = b""

    @property
    def name(self) -> str:
        """Its name in messages: its rank, and its address if it is on another machine."""
        local = ipaddress.ip_address(self.host).is_loopback
        return f"process {self.rank}" + ("" if local else f" ({self.host})")

    def read(self) -> None:
        """Reads the messages that have arrived."""
        try:
            data = self.line.recv(_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.heard = time.monotonic()
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in filter(None, lines):
            self._take(from_line(line))
        if (not data or len(self.unread) > _MESSAGE_BYTES) and not self.closed:
            self.lose("has ended unexpectedly.")
            self.closed = True

    def lose(self, how: str, code: int | None = None) -> None:
        """Records its end, unless an earlier one is recorded."""
        self.lost = self.lost or PeerLoss(f"{self.name} {how}", code)

    def _take(self, message: Mapping[str, Any]) -> None:
        end = message.get("end")
        if end == "lost":
            code = message.get("code")
            self.lose(
                str(message.get("text"))[:MOST_TEXT], code if type(code) is int and 0 < code < 256 else None
            )
        self.closed = self.closed or end in ("done", "closed")


class Heartbeat:
    """The connections to the peers, made by ``join_group``.

    Args:
        rank: this process's rank.
        peers: all others for rank 0, rank 0 for the others.
        datagrams: the UDP socket.
        token: the bytes that every datagram begins with.
        silence: seconds without a heartbeat after which a peer is lost.
    """

    def __init__(
        self, rank: int, peers: Sequence[Peer], datagrams: socket.socket, token: bytes, silence: float
    ) -> None:
        self.rank = rank
        self.peers = peers
        self.silence = silence
        self._datagrams = datagrams
        self._token = token
        self._datagram = token + rank.to_bytes(4, "big")
        self._next = 0.0
        for connection in (datagrams, *(peer.line for peer in peers)):
            connection.setblocking(False)

    @property
    def sockets(self) -> list[socket.socket]:
        """The sockets that become readable when a peer has sent something."""
        return [self._datagrams, *(peer.line for peer in self.peers if not peer.closed)]

    @property
    def all_closed(self) -> bool:
        """Whether no peer needs this process any more."""
        return all(peer.closed for peer in self.peers)

    @property
    def peer_loss(self) -> PeerLoss | None:
        """The end of the first lost peer; None if none is lost."""
        return next((peer.lost for peer in self.peers if peer.lost is not None), None)

    def beat(self) -> None:
        """Sends a heartbeat to every peer, if one is due."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _BEAT
        for peer in self.peers:
            with contextlib.suppress(OSError):  # the peer detects a heartbeat that does not arrive
                peer.line.send(b"\n")
            if peer.home is not None:
                with contextlib.suppress(OSError):
                    self._datagrams.sendto(self._datagram, peer.home)

    def receive(self) -> None:
        """Reads what has arrived, and marks peers as lost whose last heartbeat is too old."""
        self._read_datagrams()
        for peer in self.peers:
            if peer.closed:
                continue
            peer.read()
            if not peer.closed and time.monotonic() - peer.heard > self.silence:
                peer.lose(
                    f"has not been heard from for {self.silence:g} seconds: it has stopped, or the network "
                    "is cut."
                )
                peer.closed = True

    def send_end(self, end: str, text: str = "", code: int | None = None) -> None:
        """Sends this process's end to all peers.

        Args:
            end: ``done`` for a planned end, ``lost`` for any other, ``closed`` once its files are closed.
            text: the rest of a sentence that begins with this process's name.
            code: its exit code, if it has failed by itself.
        """
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.line.send(to_line({"end": end, "text": text[:MOST_TEXT], "code": code}))

    def close(self) -> None:
        """Closes all connections."""
        for connection in (self._datagrams, *(peer.line for peer in self.peers)):
            connection.close()

    def _read_datagrams(self) -> None:
        with contextlib.suppress(OSError):  # nothing left to read
            for _ in range(_DATAGRAMS):
                data, home = self._datagrams.recvfrom(len(self._datagram) + 1)
                token, rank = data[:TOKEN_BYTES], int.from_bytes(data[TOKEN_BYTES:], "big")
                if len(data) == len(self._datagram) and secrets.compare_digest(token, self._token):
                    for peer in self.peers:
                        if peer.rank == rank:
                            peer.heard, peer.home = time.monotonic(), home


def to_line(message: Mapping[str, Any]) -> bytes:
    """Returns a message as a JSON line."""
    return json.dumps(message).encode() + b"\n"


def from_line(line: bytes) -> Mapping[str, Any]:
    """Returns the message of a line; an empty one if the line is no JSON object."""
    try:
        message = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return message if isinstance(message, dict) else {}
