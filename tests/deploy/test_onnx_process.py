"""The process that computes an ONNX file: its limits, its end, and what happens when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from kdtrain.deploy.onnx_model import OnnxModel
from kdtrain.errors import CheckpointError
from tests.deploy.test_onnx_model import model
from tests.tools import ROOT

IMAGES = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    path.write_bytes(model().SerializeToString())
    return path


def pid_of(loaded: OnnxModel) -> int:
    return loaded.process._process.pid


def test_it_ends_with_the_model(path: Path) -> None:
    loaded = OnnxModel.load(path)
    pid = pid_of(loaded)
    del loaded
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_ends_when_whoever_asked_is_killed(path: Path) -> None:
    code = (
        "import sys, time; from kdtrain.deploy.onnx_model import OnnxModel;"
        "model = OnnxModel.load(sys.argv[1]);"
        "print(model.process._process.pid, flush=True); time.sleep(60)"
    )
    asking = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with asking:
        assert asking.stdout is not None
        pid = int(asking.stdout.readline())
        asking.kill()
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.05)
    assert not Path(f"/proc/{pid}").exists()


def test_one_that_has_died_is_started_again(path: Path) -> None:
    loaded = OnnxModel.load(path)
    expected, first = loaded.logits(IMAGES), pid_of(loaded)
    os.kill(first, signal.SIGKILL)
    loaded.process._process.wait()
    np.testing.assert_array_equal(loaded.logits(IMAGES), expected)
    assert pid_of(loaded) != first


def test_a_file_that_has_been_replaced_meanwhile_is_not_taken_for_the_same(path: Path) -> None:
    loaded = OnnxModel.load(path)
    path.write_bytes(path.read_bytes().replace(b'"parameters": 8', b'"parameters": 9'))
    os.kill(pid_of(loaded), signal.SIGKILL)
    loaded.process._process.wait()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="has been replaced"):
            loaded.logits(IMAGES)


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGALRM, "longer than 30 seconds"), (signal.SIGABRT, "SIGABRT")]
)
def test_one_that_dies_while_it_computes_says_why(path: Path, number: signal.Signals, said: str) -> None:
    loaded = OnnxModel.load(path)
    pid = pid_of(loaded)
    os.kill(pid, signal.SIGSTOP)  # it is asked, and does not get to its answer

    def kill() -> None:
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)

    ended = threading.Timer(0.3, kill)
    ended.start()
    with pytest.raises(CheckpointError, match=said) as caught:
        loaded.logits(IMAGES)
    ended.join()
    assert str(path) in str(caught.value)
    assert loaded.logits(IMAGES).shape == (2, 2), "the next question is answered"


def test_what_takes_too_long_ends_though_it_never_returns_to_python() -> None:
    code = (
        "from kdtrain.deploy import onnx_worker as w; w.LONGEST = 1; import re\n"
        "with w._time_limit(): re.match('(a*)*b', 'a' * 40)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30, check=False)
    assert ended.returncode == -signal.SIGALRM


def test_several_threads_get_their_own_answers(path: Path) -> None:
    loaded = OnnxModel.load(path)
    images = [np.full((1, 1, 2, 2), number, np.uint8) for number in range(20)]
    expected = [loaded.logits(image) for image in images]
    found: dict[int, list[object]] = {}

    def ask(number: int) -> None:
        found[number] = [loaded.logits(images[number]).tolist() for _ in range(20)]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: 20 * [logits.tolist()] for number, logits in enumerate(expected)}


def test_the_folder_that_one_works_in_lends_it_no_code(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path.parent / "onnx.py").write_text("raise SystemExit('run from the folder')")
    monkeypatch.chdir(path.parent)
    assert OnnxModel.load(path).logits(IMAGES).shape == (2, 2)


def test_seconds_are_told_for_each_portion(path: Path) -> None:
    seconds = OnnxModel.load(path).seconds(np.zeros((20, 1, 2, 2), np.uint8), 1)
    assert len(seconds) == 20
    assert all(0 < each < 5 for each in seconds)
