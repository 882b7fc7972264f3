"""The connections by which processes that train together notice that one of them has ended.

OneFlow's collectives wait for ever where a network is cut or a process is stopped. These connections
are kdtrain's own. Rank 0 is connected to each of the others:

* A TCP connection carries a word at the end, and the kernel closes it when a process is killed.
* Datagrams carry a beat a second. TCP carries the same beat, for networks that let no datagram through.
  TCP alone would be too slow: its pauses double, so after a cut of 30 s it sends again 51 s after the cut.

All of it is JSON lines and bytes of bounded size.
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
"""Seconds without a beat until a process is given up: links are cut for 30 s, and a minute is too long."""

TOKEN_BYTES = 16

_BEAT = 1.0  # seconds between two beats
_NEWS_BYTES = 1 << 12  # of a word at the end, at most
_DATAGRAMS = 100  # that are read at once: a stranger may send many
_TEXT = 500  # characters of the sentence in it

Address = tuple[str, int]


@dataclass(frozen=True)
class News:
    """That a peer has ended, or seems to have.

    Attributes:
        text: a sentence that names the peer.
        code: its exit code, where it has failed by itself, as this process may be about to do as well.
    """

    text: str
    code: int | None = None


@dataclass
class Peer:
    """Another process, as this one sees it.

    Attributes:
        rank: its number.
        host: its address.
        line: the TCP connection.
        heard: when its last beat arrived, on the monotonic clock.
        home: where its datagrams come from; None until the first.
        lost: what is known about its end, if that was not planned.
        closed: whether it needs nobody any more: its files are closed, or nothing more can be expected.
    """

    rank: int
    host: str
    line: socket.socket
    heard: float = field(default_factory=time.monotonic)
    home: Address | None = None
    lost: News | None = None
    closed: bool = False
    unread: bytes = b""

    @property
    def name(self) -> str:
        """What messages call it: its number, and its address where that is another machine's."""
        local = ipaddress.ip_address(self.host).is_loopback
        return f"process {self.rank}" + ("" if local else f" ({self.host})")

    def read(self) -> None:
        """Takes in what has arrived on the line."""
        try:
            data = self.line.recv(_NEWS_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.heard = time.monotonic()
        *lines, self.unread = (self.unread + data).split(b"\n")
        for line in filter(None, lines):
            self._take(from_line(line))
        if (not data or len(self.unread) > _NEWS_BYTES) and not self.closed:
            self.lose("has ended unexpectedly.")
            self.closed = True

    def lose(self, how: str, code: int | None = None) -> None:
        """Notes its end, if that is not known yet."""
        self.lost = self.lost or News(f"{self.name} {how}", code)

    def _take(self, word: Mapping[str, Any]) -> None:
        end = word.get("end")
        if end == "lost":
            code = word.get("code")
            self.lose(str(word.get("text"))[:_TEXT], code if type(code) is int and 0 < code < 256 else None)
        self.closed = self.closed or end in ("done", "closed")


class Heartbeat:
    """The connections to the peers, made by ``meet``.

    Args:
        rank: this process's number.
        peers: all others for rank 0, rank 0 for the others.
        datagrams: the socket that datagrams come and go by.
        token: what a datagram has to begin with.
        silence: seconds without a beat after which a peer is lost.
    """

    def __init__(
        self, rank: int, peers: Sequence[Peer], datagrams: socket.socket, token: bytes, silence: float
    ) -> None:
        self.rank = rank
        self.peers = peers
        self.silence = silence
        self._datagrams = datagrams
        self._token = token
        self._own = token + rank.to_bytes(4, "big")
        self._next = 0.0
        for one in (datagrams, *(peer.line for peer in peers)):
            one.setblocking(False)

    @property
    def sockets(self) -> list[socket.socket]:
        """What becomes readable when a peer has sent something."""
        return [self._datagrams, *(peer.line for peer in self.peers if not peer.closed)]

    @property
    def all_closed(self) -> bool:
        """Whether no peer needs this process any more."""
        return all(peer.closed for peer in self.peers)

    @property
    def news(self) -> News | None:
        """How the first peer has ended that was lost; None while all is well."""
        return next((peer.lost for peer in self.peers if peer.lost is not None), None)

    def beat(self) -> None:
        """Sends a beat to every peer, if it is time for one."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _BEAT
        for peer in self.peers:
            with contextlib.suppress(OSError):  # what does not arrive is the other side's to notice
                peer.line.send(b"\n")
            if peer.home is not None:
                with contextlib.suppress(OSError):
                    self._datagrams.sendto(self._own, peer.home)

    def listen(self) -> None:
        """Takes in what has arrived, and notes who has not been heard from for too long."""
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

    def say(self, end: str, text: str = "", code: int | None = None) -> None:
        """Tells all peers about this process's end.

        Args:
            end: ``done`` as planned; ``lost`` for any other reason; ``closed`` once its files are.
            text: the rest of the sentence that begins with this process's name.
            code: as in ``News``.
        """
        for peer in self.peers:
            with contextlib.suppress(OSError):
                peer.line.send(to_line({"end": end, "text": text[:_TEXT], "code": code}))

    def close(self) -> None:
        """Closes all connections."""
        for one in (self._datagrams, *(peer.line for peer in self.peers)):
            one.close()

    def _read_datagrams(self) -> None:
        with contextlib.suppress(OSError):  # nothing left to read
            for _ in range(_DATAGRAMS):
                data, home = self._datagrams.recvfrom(len(self._own) + 1)
                token, rank = data[:TOKEN_BYTES], int.from_bytes(data[TOKEN_BYTES:], "big")
                if len(data) == len(self._own) and secrets.compare_digest(token, self._token):
                    for peer in self.peers:
                        if peer.rank == rank:
                            peer.heard, peer.home = time.monotonic(), home


def to_line(word: Mapping[str, Any]) -> bytes:
    """Returns what goes over a connection: a JSON object on a line."""
    return json.dumps(word).encode() + b"\n"


def from_line(line: bytes) -> Mapping[str, Any]:
    """Returns what a line says; nothing, where it is no JSON object."""
    try:
        word = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return word if isinstance(word, dict) else {}
