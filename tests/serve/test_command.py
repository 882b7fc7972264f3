"""``kdtrain serve`` itself: how it begins, what it refuses, and how it ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from kdtrain.cli.serve import _listen
from tests.conftest import ROOT
from tests.serve.conftest import PNG, Service, encoded, serve


def refused(*words: str | Path, code: int, prelude: str = "pass") -> str:
    """What the command says, in one line, when it cannot begin."""
    script = f"import sys; {prelude}; from kdtrain.cli import main; sys.exit(main())"
    finished = subprocess.run(
        [sys.executable, "-c", script, "serve", *map(str, words)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (finished.returncode, finished.stdout) == (code, ""), finished.stderr
    (line,) = finished.stderr.splitlines()
    return line


def test_port_that_is_taken_is_one_sentence(exported: Path, service: Service) -> None:
    said = refused(exported / "student.onnx", "--port", str(service.port), code=1)
    assert said == (
        f"kdtrain: cannot listen on 127.0.0.1, port {service.port}: Address already in use. "
        "Choose others with --host and --port."
    )


def test_what_cannot_be_served_is_named(exported: Path, pets: Path) -> None:
    student = exported / "student.onnx"
    for words, code, said in (
        ((exported / "absent.onnx",), 1, f"there is no model {exported}/absent.onnx."),
        ((student, "--teacher", pets), 1, f"{pets} has other images than {student}."),
        ((student, "--port", "65536"), 2, "--port is 65536: it must be from 0 (any that is free) to 65535."),
        ((student, "--rate", "0"), 2, "--rate is 0: it must be above 0."),
        ((student, "--max-body", "nan"), 2, "--max-body is nan: it must be above 0."),
        ((student, "--host", "nowhere.invalid"), 2, "--host nowhere.invalid is no address or name of this"),
    ):
        assert said in refused(*words, code=code)


def test_missing_packages_are_named_with_the_remedy(exported: Path) -> None:
    said = refused(exported / "student.onnx", code=1, prelude="sys.modules['uvicorn'] = None")
    assert "serving needs starlette and uvicorn, which are not installed" in said
    assert said.endswith("install them with `pip install 'kdtrain[serve]'`.")


def test_small_answers_are_sent_at_once() -> None:
    """asyncio looks at the listener's protocol when it chooses so for a connection."""
    with _listen("localhost", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_stranger_network_is_warned_of(exported: Path) -> None:
    with serve(exported / "student.onnx", "--host", "0.0.0.0") as service:
        assert service.ask("/healthz").status == 200
        service.process.send_signal(signal.SIGINT)
        _, said = service.process.communicate(timeout=20)
    assert "kdtrain: warning: whoever can reach 0.0.0.0 can use this service" in said


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_it_once_it_has_answered(
    exported: Path, photo: Image.Image, number: signal.Signals, code: int
) -> None:
    """Under load: whoever is answered is answered in full, and soon nobody is."""
    body = encoded(photo)
    answered: list[str] = []

    def ask_on(service: Service) -> None:
        with contextlib.suppress(OSError):  # nobody listens any more
            while True:
                answer = service.ask("/predict", body, PNG)
                assert answer.status == 200
                answered.append(answer.content["predictions"][0]["class"])
                if len(answered) == 16:
                    service.process.send_signal(number)

    with serve(exported / "student.onnx", "--rate", "1000") as service, ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(ask_on, service) for _ in range(8)]
        for client in clients:
            client.result(timeout=60)
        assert len(answered) >= 16
        assert set(answered) == {"7"}
        _, said = service.process.communicate(timeout=20)
        assert service.process.returncode == code
        assert said.splitlines() == [
            "Ctrl-C ends it.",
            "kdtrain: interrupted." if number == signal.SIGINT else "kdtrain: terminated.",
        ]


def test_silent_connection_does_not_keep_it_from_ending(exported: Path) -> None:
    with serve(exported / "student.onnx") as service:
        with socket.create_connection(("127.0.0.1", service.port), 10) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n")
            connection.sendall(b"Content-Length: 100\r\n\r\nhalf")
            service.process.send_signal(signal.SIGTERM)
            _, said = service.process.communicate(timeout=20)
        assert service.process.returncode == 143
        assert "Traceback" not in said
