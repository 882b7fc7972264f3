"""Limits of requests: size and time; slow clients and failures affect no other client."""

from __future__ import annotations

import contextlib
import http.client
import json
import select
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException

from kdtrain.data.dataset import Dataset
from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.deploy.serve.requests import Limits, images_in
from kdtrain.store.card import ModelCard
from tests.deploy.serve.conftest import JSON, Service, as_json, ask, serve, service_with

CARD = ModelCard("student", "student_mlp", "mnist", (1, 3, 2), ("a", "b"), (0.5,), (0.2,))


@contextmanager
def begun(port: int, *head: str) -> Iterator[tuple[socket.socket, http.client.HTTPResponse]]:
    """Sends the head of a request; yields the connection and the response to come."""
    lines = ["POST /predict HTTP/1.1", "Host: localhost", "Content-Type: image/png", *head, "", ""]
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall("\r\n".join(lines).encode())
        with http.client.HTTPResponse(connection) as response:
            yield connection, response


def test_fifty_at_once_are_all_answered(exported: Path, mnist: Dataset) -> None:
    with serve(exported / "student.onnx") as service, ThreadPoolExecutor(50) as pool:
        answers = list(
            pool.map(
                lambda index: service.ask("/predict", as_json(mnist.test.images[index]), JSON), range(50)
            )
        )
        assert [answer.status for answer in answers] == 50 * [200]
        expected = OnnxModel.load(exported / "student.onnx").logits(mnist.test.images[:50]).argmax(1)
        classes = [answer.content["predictions"][0]["class"] for answer in answers]
        assert classes == [str(index) for index in expected]


def test_body_is_refused_before_it_is_sent(service: Service) -> None:
    head = ("Content-Length: 9999999999", "Expect: 100-continue")
    with begun(service.port, *head) as (_, response):
        response.begin()
        assert response.status == 413


def test_body_without_a_length_is_counted(exported: Path) -> None:
    """Of three times the limit, the client reads the response. An endless body is cut off."""
    with service_with(exported / "student.onnx", Limits(body=100_000)) as port:
        chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
        with begun(port, "Transfer-Encoding: chunked") as (connection, response):
            connection.sendall(20 * chunk + b"0\r\n\r\n")
            response.begin()
            assert response.status == 413
            assert "100,000" in json.loads(response.read())["error"]
        with (
            begun(port, "Transfer-Encoding: chunked") as (connection, _),
            pytest.raises(OSError, match=r"Broken pipe|Connection reset"),
        ):
            connection.sendall(10_000 * chunk)


def test_slow_body_is_refused_and_delays_no_other_client(exported: Path, mnist: Dataset) -> None:
    with (
        service_with(exported / "student.onnx", Limits(seconds=1.5)) as port,
        begun(port, "Content-Length: 1000") as (connection, response),
    ):
        began = time.monotonic()
        for _ in range(5):
            connection.sendall(b"x")
            assert ask(port, "/predict", as_json(mnist.test.images[0]), JSON).status == 200
        response.begin()
        assert time.monotonic() - began >= 1.4
        assert (response.status, response.headers["Connection"]) == (408, "close")
        assert "1.5 seconds" in json.loads(response.read())["error"]


def test_client_that_disconnects_is_not_logged(exported: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with service_with(exported / "student.onnx", Limits()) as port:
        with begun(port, "Content-Length: 1000") as (connection, _):
            connection.sendall(b"half")
        time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_logits_that_are_not_finite_are_a_failure_of_the_service(
    exported: Path, mnist: Dataset, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The response is JSON, and the log has one line without a traceback."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(exported / "student.onnx")
    weights = model.graph.initializer[-1]
    spoilt = np.full_like(numpy_helper.to_array(weights), np.nan)
    weights.CopyFrom(numpy_helper.from_array(spoilt, weights.name))
    onnx.save(model, tmp_path / "spoilt.onnx")
    with service_with(tmp_path / "spoilt.onnx", Limits()) as port:
        answer = ask(port, "/predict", as_json(mnist.test.images[0]), JSON)
        assert answer.status == 500
        assert "not finite" in answer.content["error"]
    (record,) = caplog.records
    assert "POST /predict" in record.getMessage()
    assert record.exc_info is None


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=2), inner)),
    max_leaves=30,
)


@settings(max_examples=50)
@given(st.one_of(VALUES, VALUES.map(lambda value: {"pixels": value})).map(json.dumps).map(str.encode))
def test_any_json_gives_images_or_a_refusal(body: bytes) -> None:
    with contextlib.suppress(HTTPException):
        images = images_in("application/json", body, CARD)
        assert images.shape[1:] == CARD.image_shape
        assert ((images >= 0) & (images <= 255)).all()


@given(st.binary(max_size=60))
def test_any_bytes_give_images_or_a_refusal(body: bytes) -> None:
    for kind in ("application/json", "image/png"):
        with pytest.raises(HTTPException) as caught:
            images_in(kind, body, CARD)
        assert caught.value.status_code in (400, 422)


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
