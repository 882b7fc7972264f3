"""The process that computes an ONNX file: its limits, its end, and its restart after it has died."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
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


def test_it_ends_when_its_parent_is_killed(path: Path) -> None:
    code = (
        "import sys, time; from kdtrain.deploy.onnx_model import OnnxModel;"
        "model = OnnxModel.load(sys.argv[1]);"
        "print(model.process._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
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


def test_a_restart_refuses_a_file_that_has_been_replaced(path: Path) -> None:
    loaded = OnnxModel.load(path)
    path.write_bytes(path.read_bytes().replace(b'"parameters": 8', b'"parameters": 9'))
    os.kill(pid_of(loaded), signal.SIGKILL)
    loaded.process._process.wait()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="has been replaced"):
            loaded.logits(IMAGES)


@pytest.mark.parametrize(("number", "cause"), [(signal.SIGALRM, "30 seconds"), (signal.SIGABRT, "SIGABRT")])
def test_the_cause_of_its_death_is_named(path: Path, number: signal.Signals, cause: str) -> None:
    loaded = OnnxModel.load(path)
    pid = pid_of(loaded)
    os.kill(pid, signal.SIGSTOP)  # it gets a request, and cannot reply

    def kill() -> None:
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)

    ended = threading.Timer(0.3, kill)
    ended.start()
    with pytest.raises(CheckpointError, match=cause) as caught:
        loaded.logits(IMAGES)
    ended.join()
    assert str(path) in str(caught.value)
    assert loaded.logits(IMAGES).shape == (2, 2), "the next request is computed"


def test_the_time_limit_also_ends_code_that_never_returns_to_python() -> None:
    code = (
        "from kdtrain.deploy import onnx_worker as w; w.LONGEST = 1; import re\n"
        "with w._time_limit(): re.match('(a*)*b', 'a' * 40)"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=30, check=False)
    assert ended.returncode == -signal.SIGALRM


def test_several_threads_get_their_own_logits(path: Path) -> None:
    loaded = OnnxModel.load(path)
    images = [np.full((1, 1, 2, 2), number, np.uint8) for number in range(20)]
    expected = [loaded.logits(image) for image in images]
    with ThreadPoolExecutor(20) as pool:
        computed = [
            [future.result() for future in [pool.submit(loaded.logits, image) for image in images]]
            for _ in range(20)
        ]
    np.testing.assert_array_equal(computed, 20 * [expected])


def test_it_imports_nothing_from_the_working_directory(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (path.parent / "onnx.py").write_text("raise SystemExit('run from the folder')")
    monkeypatch.chdir(path.parent)
    assert OnnxModel.load(path).logits(IMAGES).shape == (2, 2)


def test_seconds_are_those_of_each_batch(path: Path) -> None:
    seconds = OnnxModel.load(path).seconds(np.zeros((20, 1, 2, 2), np.uint8), 1)
    assert len(seconds) == 20
    assert all(0 < time < 5 for time in seconds)
