"""Clients that send slowly, or nothing: their connections are closed, and the others are answered."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from kdtrain.deploy.serve.limits import Limits
from tests.deploy.serve.test_limits import service_with

HEAD = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
ASK = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
PAUSE = 0.1  # seconds between two bytes
SLOW = 5.0  # seconds after which a connection that the service gives up after one must have ended


@pytest.fixture(scope="module")
def port(exported: Path) -> Iterator[int]:
    """A service that waits for a second, not for ten."""
    with service_with(exported / "student.onnx", Limits(head=1, seconds=1)) as port:
        yield port


def answers(port: int, first: bytes, drip: bytes = b"") -> list[bytes]:
    """Sends some bytes, then others one by one, until the service closes; returns the lines it has sent."""
    with socket.create_connection(("127.0.0.1", port), SLOW) as connection:
        began, said = time.monotonic(), b""
        connection.sendall(first)
        while time.monotonic() - began < SLOW:
            readable, _, _ = select.select([connection], [], [], PAUSE)
            try:
                part = connection.recv(65536) if readable else None
            except ConnectionResetError:  # a byte of ours met the closed end, and took the answer with it
                part = b""
            if part == b"":
                assert time.monotonic() - began > 0.9, "it had a second"
                return said.splitlines()
            said += part or b""
            with contextlib.suppress(ConnectionError):
                connection.sendall(drip[:1])
            drip = drip[1:]
        raise AssertionError(f"still connected after {SLOW} seconds; it was answered {said!r}")


@pytest.mark.parametrize(
    ("first", "drip"),
    [(b"", b""), (b"POST /pre", b""), (b"", HEAD), (HEAD, b"X-Slow: " + b"x" * 100)],
    ids=["nothing", "half a line", "a byte at a time", "an endless header"],
)
def test_a_head_that_is_not_there_in_time_is_cut_off(port: int, first: bytes, drip: bytes) -> None:
    said = answers(port, first, drip)[:1]
    assert said == [b"HTTP/1.1 408 Request Timeout"] or (drip and not said)


@pytest.mark.parametrize("drip", [b"", b"x" * 100], ids=["stalled", "a byte at a time"])
def test_a_body_that_is_not_there_in_time_is_cut_off(port: int, drip: bytes) -> None:
    said = answers(port, HEAD + b"Content-Length: 1000\r\n\r\n", drip)[:1]
    assert said == [b"HTTP/1.1 408 Request Timeout"] or (drip and not said)


def test_a_body_that_nobody_reads_is_cut_off_too(port: int) -> None:
    said = answers(port, ASK + b"Content-Length: 1000\r\n\r\n", b"x" * 100)
    assert said[0] == b"HTTP/1.1 200 OK"
    assert not any(line.startswith(b"HTTP/1.1 408") for line in said), "it has been answered"


def test_a_second_head_on_a_connection_is_cut_off_too(port: int) -> None:
    said = answers(port, ASK + b"\r\n", ASK)
    assert said[0] == b"HTTP/1.1 200 OK"


def test_a_request_within_the_time_is_answered_however_it_comes(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), SLOW) as connection:
        for byte in range(0, len(ASK), 8):
            connection.sendall(ASK[byte : byte + 8])
            time.sleep(0.02)
        connection.sendall(b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_many_that_send_nothing_keep_nobody_from_being_answered(exported: Path) -> None:
    with (
        contextlib.ExitStack() as silent,
        service_with(exported / "student.onnx", Limits(head=60)) as port,
    ):
        connections = []
        for _ in range(300):
            connections.append(silent.enter_context(socket.create_connection(("127.0.0.1", port), SLOW)))
            connections[-1].sendall(b"GET /")
        began = time.monotonic()
        with socket.create_connection(("127.0.0.1", port), SLOW) as connection:
            connection.sendall(ASK + b"\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
        assert time.monotonic() - began < SLOW
        closed, _, _ = select.select(connections, [], [], SLOW)
        assert len(closed) >= 100, "those that have waited longest"
        assert connections[-1] not in closed
