"""The measurement of ``kdtrain serve``: requests per second and latency."""

from __future__ import annotations

import io
import json
import socket
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from bench import Bench
from PIL import Image
from tools import KDTRAIN, ROOT, Row, kdtrain

from kdtrain.data.datasets import load_dataset

_SECONDS = 3.0  # of a round
_CONNECTIONS = (1, 16)


def serving(bench: Bench) -> list[Row]:
    """Measures requests per second and latency, for pixels and for a PNG such as the page sends.

    Client and service share the machine. Each connection is kept open with one request in flight.
    """
    digit = load_dataset().test.images[0, 0]
    drawing = Image.fromarray(255 - digit).resize((200, 200), Image.Resampling.BICUBIC)
    stream = io.BytesIO()
    drawing.save(stream, "PNG")
    requests = {
        "28x28 pixels as JSON": _request("application/json", json.dumps({"pixels": digit.tolist()}).encode()),
        "a drawing, 200x200 as PNG": _request("image/png", stream.getvalue()),
    }
    cases = [(what, connections) for what in requests for connections in _CONNECTIONS]
    measured: dict[tuple[str, int], list[list[float]]] = {case: [] for case in cases}
    with _service(_exported(bench)) as port:
        for number in range(bench.repeats + 1):
            for (
                what,
                connections,
            ) in cases:  # in turn, so that a drift of the machine's speed affects all cases
                latencies = _ask(port, requests[what], connections)
                if number > 0:  # the first round warms up
                    measured[what, connections].append(latencies)
    return [_row(what, connections, rounds) for (what, connections), rounds in measured.items()]


def _row(what: str, connections: int, rounds: list[list[float]]) -> Row:
    rates = sorted(len(latencies) / _SECONDS for latencies in rounds)
    p50 = sorted(1000 * float(np.percentile(latencies, 50)) for latencies in rounds)
    p99 = sorted(1000 * float(np.percentile(latencies, 99)) for latencies in rounds)
    result = (
        f"{statistics.median(rates):,.0f} requests/s ({rates[0]:,.0f} to {rates[-1]:,.0f}), "
        f"p50 {statistics.median(p50):.1f} ms ({p50[0]:.1f} to {p50[-1]:.1f}), "
        f"p99 {statistics.median(p99):.1f} ms ({p99[0]:.1f} to {p99[-1]:.1f}), n = {len(rounds)}"
    )
    plural = "s" if connections > 1 else ""
    return Row(f"kdtrain serve student_mlp, {what}, {connections} connection{plural}", result)


def _exported(bench: Bench) -> Path:
    """Returns a student of one short epoch as an ONNX file; its weights do not matter for speed."""
    models = bench.folder / "serve"
    words = ("--mode", "student", "--epochs", "1", "--limit-train", "2000")
    kdtrain("fit", *words, "--logdir", bench.fresh(), "--model-save-dir", models)
    kdtrain("export", models / "student.safetensors")
    return models / "student.onnx"


@contextmanager
def _service(model: Path) -> Iterator[int]:
    """Runs the service; yields its port."""
    command = [*KDTRAIN, "serve", str(model), "--port", "0"]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline().rstrip("/\n").rpartition(":")[2])
    finally:
        process.terminate()
        process.communicate()


def _request(kind: str, body: bytes) -> bytes:
    lines = (
        "POST /predict HTTP/1.1",
        "Host: localhost",
        f"Content-Type: {kind}",
        f"Content-Length: {len(body)}",
    )
    return "\r\n".join([*lines, "", ""]).encode() + body


def _ask(port: int, request: bytes, connections: int) -> list[float]:
    """Sends requests over several connections for ``_SECONDS``; returns the latency of each, s."""
    latencies: list[list[float]] = [[] for _ in range(connections)]
    until = time.perf_counter() + _SECONDS
    threads = [
        threading.Thread(target=_ask_on, args=(port, request, until, of_connection))
        for of_connection in latencies
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if not all(latencies):
        raise SystemExit("kdtrain serve does not answer")
    return [seconds for of_connection in latencies for seconds in of_connection]


def _ask_on(port: int, request: bytes, until: float, latencies: list[float]) -> None:
    with (
        socket.create_connection(("127.0.0.1", port), 60) as connection,
        connection.makefile("rb") as answers,
    ):
        while (began := time.perf_counter()) < until:
            connection.sendall(request)
            if b" 200 " not in answers.readline():
                return
            length = 0
            while (line := answers.readline()) not in (b"\r\n", b""):
                name, _, value = line.partition(b":")
                length = int(value) if name == b"content-length" else length
            answers.read(length)
            latencies.append(time.perf_counter() - began)
