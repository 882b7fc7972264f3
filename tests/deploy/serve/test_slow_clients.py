"""Clients that send slowly, or nothing: the service closes their connections, and serves the others."""

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
GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n"
PAUSE = 0.1  # seconds between two bytes
SLOW = 5.0  # seconds within which a connection must end whose limit is one second


@pytest.fixture(scope="module")
def port(exported: Path) -> Iterator[int]:
    """A service with time limits of one second."""
    with service_with(exported / "student.onnx", Limits(head=1, seconds=1)) as port:
        yield port


def lines_received(port: int, first: bytes, drip: bytes = b"") -> list[bytes]:
    """Sends ``first``, then ``drip`` byte by byte, until the service closes; returns the response's lines."""
    with socket.create_connection(("127.0.0.1", port), SLOW) as connection:
        began, received = time.monotonic(), b""
        connection.sendall(first)
        while time.monotonic() - began < SLOW:
            readable, _, _ = select.select([connection], [], [], PAUSE)
            try:
                part = connection.recv(65536) if readable else None
            except ConnectionResetError:  # a byte was sent after the service had closed; the response is lost
                part = b""
            if part == b"":
                assert time.monotonic() - began > 0.9, "it had a second"
                return received.splitlines()
            received += part or b""
            with contextlib.suppress(ConnectionError):
                connection.sendall(drip[:1])
            drip = drip[1:]
        raise AssertionError(f"still connected after {SLOW} seconds, with the response {received!r}")


@pytest.mark.parametrize(
    ("first", "drip"),
    [(b"", b""), (b"POST /pre", b""), (b"", HEAD), (HEAD, b"X-Slow: " + b"x" * 100)],
    ids=["nothing", "half a line", "a byte at a time", "an endless header"],
)
def test_a_slow_head_is_cut_off(port: int, first: bytes, drip: bytes) -> None:
    status = lines_received(port, first, drip)[:1]
    assert status == [b"HTTP/1.1 408 Request Timeout"] or (drip and not status)


@pytest.mark.parametrize("drip", [b"", b"x" * 100], ids=["stalled", "a byte at a time"])
def test_a_slow_body_is_cut_off(port: int, drip: bytes) -> None:
    status = lines_received(port, HEAD + b"Content-Length: 1000\r\n\r\n", drip)[:1]
    assert status == [b"HTTP/1.1 408 Request Timeout"] or (drip and not status)


def test_a_body_that_is_not_needed_is_cut_off_too(port: int) -> None:
    lines = lines_received(port, GET + b"Content-Length: 1000\r\n\r\n", b"x" * 100)
    assert lines[0] == b"HTTP/1.1 200 OK"
    assert not any(line.startswith(b"HTTP/1.1 408") for line in lines), "it has had its response"


def test_a_second_head_on_a_connection_is_cut_off_too(port: int) -> None:
    lines = lines_received(port, GET + b"\r\n", GET)
    assert lines[0] == b"HTTP/1.1 200 OK"


def test_a_request_in_small_pieces_within_the_time_is_served(port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), SLOW) as connection:
        for byte in range(0, len(GET), 8):
            connection.sendall(GET[byte : byte + 8])
            time.sleep(0.02)
        connection.sendall(b"\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")


def test_many_silent_connections_block_no_other_client(exported: Path) -> None:
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
            connection.sendall(GET + b"\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200 OK")
        assert time.monotonic() - began < SLOW
        closed, _, _ = select.select(connections, [], [], SLOW)
        assert len(closed) >= 100, "the oldest connections"
        assert connections[-1] not in closed
