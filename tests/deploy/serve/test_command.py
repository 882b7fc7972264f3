"""``kdtrain serve`` itself: how it begins, what it refuses, and how it ends."""

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
from tests.conftest import RunKdtrain
from tests.deploy.serve.conftest import PNG, Service, encoded, serve


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., str]]:
    """Returns what the command says, in one line, when it cannot begin; it runs in this process."""

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


def test_port_that_is_taken_is_one_sentence(
    exported: Path, service: Service, refused: Callable[..., str]
) -> None:
    said = refused(exported / "student.onnx", "--port", str(service.port), code=1)
    assert said == (
        f"kdtrain: cannot listen on 127.0.0.1, port {service.port}: Address already in use. "
        "Choose others with --host and --port."
    )


def test_a_file_of_another_kind_is_one_line(exported: Path, tmp_path: Path, run_kdtrain: RunKdtrain) -> None:
    """onnx warns of such files as well, which a process of its own would show."""
    wrong = tmp_path / "wrong.onnx"
    wrong.write_bytes((exported / "student.safetensors").read_bytes())
    finished = run_kdtrain("serve", wrong, cwd=tmp_path)
    assert finished.returncode == 1
    assert len(finished.stderr.splitlines()) == 1, finished.stderr


def test_what_cannot_be_served_is_named(exported: Path, pets: Path, refused: Callable[..., str]) -> None:
    student = exported / "student.onnx"
    for words, code, said in (
        ((exported / "absent.onnx",), 1, f"there is no model {exported}/absent.onnx."),
        ((student, "--teacher", pets), 1, f"{pets} has other images than {student}."),
        (
            (exported / "student.safetensors",),
            2,
            f"export {exported}/student.safetensors`, then serve {student}",
        ),
        (
            (student, "--teacher", exported / "teacher.safetensors"),
            2,
            f"export {exported}/teacher.safetensors`",
        ),
        ((student, "--port", "65536"), 2, "--port is 65536: it must be from 0 (any that is free) to 65535."),
        ((student, "--rate", "0"), 2, "--rate is 0.0: it must be above 0, and at most 1,000,000."),
        ((student, "--max-body", "nan"), 2, "--max-body is nan: it must be above 0, and at most 1,000."),
        ((student, "--host", "nowhere.invalid"), 2, "--host nowhere.invalid is no address or name of this"),
    ):
        assert said in refused(*words, code=code)


def test_missing_packages_are_named_with_the_remedy(
    exported: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    said = refused(exported / "student.onnx", code=1)
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
