"""Limits for all clients together: open files, memory of bodies and of responses that nobody reads."""

from __future__ import annotations

import contextlib
import http.client
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from kdtrain.data.dataset import Dataset
from kdtrain.deploy.serve.requests import Limits
from tests.deploy.serve.conftest import JSON, as_json, ask, serve, service_with
from tests.tools import wait_until

SLOW = 5.0  # seconds within which a service responds
ANSWER = 1_500_000  # bytes, at least, of the response to `large`


def test_more_clients_than_files_wait_for_their_turn_and_leave_no_line_in_the_log(exported: Path) -> None:
    with contextlib.ExitStack() as opened, serve(exported / "student.onnx", files=64) as service:
        for _ in range(60):  # connections stay open for 5 s after a response
            client = opened.enter_context(socket.create_connection(("127.0.0.1", service.port), 20))
            client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 200 OK")
        service.process.terminate()
        _, err = service.process.communicate(timeout=10)
        assert err.splitlines()[-1:] == ["kdtrain: terminated."]
        assert len(err.splitlines()) < 5, err


def large(mnist: Dataset, images: int = 500) -> bytes:
    """Returns a request whose body and response are large."""
    body = as_json(mnist.test.images[:images])
    head = b"POST /predict?pixels HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body)


def read_to_the_end(connection: socket.socket, pause: float = 0.0) -> int:
    """Reads a response slowly; returns its length, or -1 if it ends before its time."""
    response, length = http.client.HTTPResponse(connection), 0
    try:
        response.begin()
        while part := response.read(200_000):
            length += len(part)
            time.sleep(pause)
    except (ConnectionResetError, http.client.HTTPException):
        return -1
    return length if response.isclosed() and length >= ANSWER else -1


@contextmanager
def without_reading(
    port: int, request: bytes, clients: int, seconds: float = SLOW
) -> Iterator[list[socket.socket]]:
    """Sends a request over several connections, one after the other, and reads no response.

    Each has so many seconds until its response begins.
    """
    with contextlib.ExitStack() as opened:
        connections = []
        for _ in range(clients):
            connections.append(opened.enter_context(socket.socket()))
            connections[-1].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connections[-1].settimeout(SLOW)
            connections[-1].connect(("127.0.0.1", port))
            connections[-1].sendall(request)
            select.select([connections[-1]], [], [], seconds)
        yield connections


def test_a_client_that_reads_too_little_for_too_long_is_disconnected(exported: Path, mnist: Dataset) -> None:
    with (
        service_with(exported / "student.onnx", Limits(seconds=1)) as port,
        without_reading(port, large(mnist), 3) as (silent, trickling, slow),
    ):
        assert read_to_the_end(slow, pause=0.2) >= ANSWER, "it takes longer than a second, but reads"
        time.sleep(1)
        with contextlib.suppress(ConnectionResetError):
            trickling.recv(100)
        for connection in (silent, trickling):
            assert read_to_the_end(connection) == -1


def test_responses_that_nobody_reads_share_a_limit_and_the_oldest_is_dropped(
    exported: Path, mnist: Dataset
) -> None:
    with (
        service_with(exported / "student.onnx", Limits(unread=3 * ANSWER)) as port,
        without_reading(port, large(mnist), 6) as connections,
    ):
        lengths = [read_to_the_end(connection) for connection in connections]
        assert lengths[0] == -1
        assert lengths[-1] >= ANSWER
        assert 1 <= sum(length > 0 for length in lengths) <= 3
        assert sorted(lengths, key=lambda length: length > 0) == lengths, "the oldest ones"


def test_a_large_body_waits_for_others_and_a_small_one_does_not(exported: Path, mnist: Dataset) -> None:
    request = large(mnist)
    with (
        service_with(exported / "student.onnx", Limits(seconds=1.5)) as port,
        without_reading(port, request[:200_000], 2, 0.1),  # as many as one thread admits
        ThreadPoolExecutor(1) as pool,
        without_reading(port, b"", 1, 0) as (third,),
    ):
        began = time.monotonic()
        sending = pool.submit(third.sendall, request)
        assert ask(port, "/predict", as_json(mnist.test.images[0]), JSON, seconds=SLOW).status == 200
        assert not select.select([third], [], [], 0)[0]
        assert read_to_the_end(third) >= ANSWER
        assert time.monotonic() - began > 0.5, "the others have had their time"
        sending.result()


def test_memory_is_given_back(exported: Path, mnist: Dataset) -> None:
    def memory() -> int:
        return int(Path(f"/proc/{service.process.pid}/statm").read_text().split()[1]) * 4096

    with serve(exported / "student.onnx") as service:
        before = memory()
        with without_reading(service.port, large(mnist, 2000), 5, 2 * SLOW):
            assert memory() > before + 20_000_000
        wait_until(lambda: memory() < before + 20_000_000, SLOW + 5)
