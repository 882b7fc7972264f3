"""``kdtrain serve`` as a command: its start, its refusals and its end."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import Image

from kdtrain.cli import main
from kdtrain.cli.serve import _listen
from tests.cli.conftest import Call
from tests.deploy.serve.conftest import PNG, Service, encoded, serve


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Runs the command in this process; returns the one line on stderr with which it fails."""

    def refused(*words: str | Path, code: int) -> str:
        assert main(["serve", *map(str, words)]) == code
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        assert isinstance(line, str)
        return line

    handler = signal.getsignal(signal.SIGTERM)
    yield refused
    signal.signal(signal.SIGTERM, handler)


def test_port_in_use_is_named(exported: Path, service: Service, refused: Callable[..., str]) -> None:
    line = refused(exported / "student.onnx", "--port", str(service.port), code=1)
    for word in ("127.0.0.1", str(service.port), "Address already in use", "--host", "--port"):
        assert word in line


def test_a_file_of_another_kind_is_one_line(exported: Path, tmp_path: Path, spawn: Call) -> None:
    """Runs in a process of its own: onnx logs a warning about such files, which must not be printed."""
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes((exported / "student.safetensors").read_bytes())
    finished = spawn.any_code("serve", wrong, cwd=tmp_path)
    assert finished.returncode == 1
    assert len(finished.stderr.splitlines()) == 1, finished.stderr


def test_what_cannot_be_served_is_named(exported: Path, pets: Path, refused: Callable[..., str]) -> None:
    student = exported / "student.onnx"
    checkpoint, teacher = exported / "student.safetensors", exported / "teacher.safetensors"
    for arguments, code, named in (
        ((exported / "absent.onnx",), 1, f"{exported}/absent.onnx"),
        ((student, "--teacher", pets), 1, f"{pets} has other images than {student}"),
        ((checkpoint,), 2, f"`kdtrain export {checkpoint}`, then serve {student}"),
        ((student, "--teacher", teacher), 2, f"`kdtrain export {teacher}`"),
        ((student, "--port", "65536"), 2, "--port is 65536"),
        ((student, "--max-body", "nan"), 2, "--max-body is nan"),
        ((student, "--host", "nowhere.invalid"), 2, "--host nowhere.invalid"),
    ):
        assert named in refused(*arguments, code=code)


def test_missing_packages_are_named_with_the_remedy(
    exported: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    line = refused(exported / "student.onnx", code=1)
    assert "uvicorn" in line
    assert "`pip install 'kdtrain[serve]'`" in line


def test_small_responses_are_sent_at_once() -> None:
    """asyncio sets TCP_NODELAY on a connection if the listener's protocol is TCP."""
    with _listen("localhost", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP


def test_listening_for_other_machines_is_warned_of(exported: Path) -> None:
    with serve(exported / "student.onnx", "--host", "0.0.0.0") as service:
        assert service.ask("/healthz").status == 200
        service.process.send_signal(signal.SIGINT)
        _, err = service.process.communicate(timeout=20)
    assert "kdtrain: warning: " in err
    assert "0.0.0.0" in err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_it_after_the_requests_in_flight(
    exported: Path, photo: Image.Image, number: signal.Signals, code: int
) -> None:
    """Under load, every response that is sent is complete."""
    body = encoded(photo)
    answered: list[str] = []

    def ask_on(service: Service) -> None:
        with contextlib.suppress(OSError):  # the service has closed its socket
            while True:
                answer = service.ask("/predict", body, PNG)
                assert answer.status == 200
                answered.append(answer.content["predictions"][0]["class"])
                if len(answered) == 16:
                    service.process.send_signal(number)

    with serve(exported / "student.onnx") as service, ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(ask_on, service) for _ in range(8)]
        for client in clients:
            client.result(timeout=60)
        assert len(answered) >= 16
        assert set(answered) == {"7"}
        _, err = service.process.communicate(timeout=20)
        assert service.process.returncode == code
        last = "kdtrain: interrupted." if number == signal.SIGINT else "kdtrain: terminated."
        assert err.splitlines() == ["Ctrl-C ends it.", last]


def test_silent_connection_does_not_keep_it_from_ending(exported: Path) -> None:
    with serve(exported / "student.onnx") as service:
        with socket.create_connection(("127.0.0.1", service.port), 10) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n")
            connection.sendall(b"Content-Length: 100\r\n\r\nhalf")
            service.process.send_signal(signal.SIGTERM)
            _, err = service.process.communicate(timeout=20)
        assert service.process.returncode == 143
        assert "Traceback" not in err
