"""Forks of the warm parent: nothing that a test sees differs from a real process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdtrain.store.checkpoint import load_model
from tests import warm
from tests.cli.conftest import EPOCH
from tests.tools import ROOT, files_in, is_alive, wait_until

Start = Callable[..., Any]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT)}


def start(kind: Start, *words: str | Path, **options: Any) -> Any:
    command = [sys.executable, *map(str, words)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    return kind(command, **pipes | options)


def ends(*words: str | Path, **options: Any) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of a command in a fork and in a real process."""
    found = []
    for kind in (warm.Popen, subprocess.Popen):
        with start(kind, *words, **options) as process:
            out, err = process.communicate(timeout=60)
        found.append((process.returncode, out, err))
    return found


CODES = {
    "state": """
import os, resource, signal, sys, tempfile, threading
import __main__
print(sys.argv, sys.path, __name__, sorted(set(vars(__main__)) - {"names"}))
print(os.getcwd(), tempfile.gettempdir())
print([(number, signal.getsignal(number)) for number in (2, 10, 13, 15)], signal.pthread_sigmask(0, []))
print([(s.name, s.mode, s.encoding, s.errors, s.line_buffering, s.write_through) for s in
       (sys.stdin, sys.stdout, sys.stderr)], sys.stdin is sys.__stdin__)
print(oct(os.umask(0)), resource.getrlimit(resource.RLIMIT_NOFILE), os.getpgrp() == os.getpid())
names = [name for name in os.environ if not name.startswith(("GLOG_", "ONEFLOW_", "PYTEST_"))]
print({name: os.environ[name] for name in names}, sys.flags, threading.active_count())
print(sys.stdin.read())
""",
    "error": "def f(): 1 / 0\ntry: f()\nexcept Exception as error: raise ValueError('ä') from error",
    "text as exit code": "import sys; sys.exit('no')",
    "exit code": "raise SystemExit(300)",
    "at exit": "import atexit, threading, time; atexit.register(print, 'last')\n"
    "threading.Thread(target=lambda: time.sleep(0.1) or print('thread')).start()",
    "Ctrl-C": "import os; os.kill(os.getpid(), 2); import time; time.sleep(60)",
    "SIGTERM": "import os; os.kill(os.getpid(), 15)",
    "abort": "import os; os.abort()",
    "closed pipe": "import os; r, w = os.pipe(); os.close(r); os.dup2(w, 1); print('x')",
}


@pytest.mark.parametrize("code", CODES.values(), ids=CODES)
def test_code_ends_as_in_a_real_process(code: str, tmp_path: Path) -> None:
    options = {"cwd": tmp_path, "stdin": subprocess.DEVNULL, "env": ENVIRONMENT | {"TMPDIR": str(tmp_path)}}
    fork, real = ends("-c", code, "a", "ü", **options)
    assert fork == real


@pytest.mark.parametrize(
    "words",
    ["", "fitt", "--version", "fit --help", "config", "runs --json", "eval missing.safetensors --debug"],
)
def test_commands_end_as_in_a_real_process(words: str, tmp_path: Path) -> None:
    fork, real = ends("-m", "kdtrain", *words.split(), cwd=tmp_path)
    assert fork == real


def test_a_fit_has_the_bits_of_one_in_a_real_process(tiles: Path, tmp_path: Path) -> None:
    flags = ("--data-dir", tiles, "--val-size", "300", "--epochs", "2", "--recipe=none")
    found = []
    for kind in (warm.Popen, subprocess.Popen):
        folder = tmp_path / kind.__module__
        folder.mkdir()
        with start(kind, "-m", "kdtrain", "fit", "--mode", "student", *flags, cwd=folder) as process:
            out, err = process.communicate(timeout=60)
        epochs = [line.rpartition("  ")[0] for line in err.splitlines() if EPOCH.fullmatch(line)]
        weights = load_model(folder / "logs/models/student.safetensors").weights
        bits = {name: array.tobytes() for name, array in weights.items()}
        test = json.loads((folder / "logs/student/version_0/result.json").read_text())["models"][0]
        test.pop("seconds")
        names = sorted(name.partition("events.")[0] for name in files_in(folder))
        found.append((process.returncode, len(out.splitlines()), len(epochs), epochs, bits, test, names))
    fork, real = found
    assert fork == real
    assert fork[:3] == (0, 7, 2)


SIGNALS = ((signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9))


@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [*((warm.Popen, *end) for end in SIGNALS), (subprocess.Popen, *SIGNALS[0])],
)
def test_a_signal_ends_a_fit_with_the_same_code(
    kind: Start, number: signal.Signals, code: int, tiles: Path, tmp_path: Path
) -> None:
    flags = ("--data-dir", tiles, "--val-size", "300", "--epochs", "1000", "--recipe=none")
    with start(kind, "-m", "kdtrain", "fit", "--mode", "student", *flags, cwd=tmp_path) as process:
        wait_until(lambda: list(tmp_path.glob("logs/student/*/metrics.jsonl")))
        assert process.poll() is None
        assert Path(f"/proc/{process.pid}/cwd").readlink() == tmp_path
        process.send_signal(number)
        assert process.wait(10) == code


@pytest.mark.parametrize("words", [("-c", "pass"), ("-m", "kdtrain", "--version")])
def test_code_and_commands_are_forked_whatever_the_shell_has_set(words: tuple[str, ...]) -> None:
    with start(warm.Popen, *words) as process:
        assert process.wait(60) == 0
    assert process._status is not None


@pytest.mark.parametrize(
    ("words", "options"),
    [
        (("-c", "pass"), {"env": ENVIRONMENT | {"LC_ALL": "C"}}),
        (("-c", "pass"), {"env": ENVIRONMENT | {"PYTHONPATH": "elsewhere"}}),
        (("-c", "pass"), {"env": ENVIRONMENT | {"OPENBLAS_NUM_THREADS": "1"}}),
        (("-m", "kdtrain", "fit", "--nproc-per-node", "2"), {}),
        (("-W", "error", "-c", "pass"), {}),
    ],
)
def test_what_counts_at_the_start_gets_a_real_process(words: Any, options: Any) -> None:
    with start(warm.Popen, *words, **options) as process:
        process.kill()
    assert process._status is None


def test_a_module_in_the_folder_is_not_hidden_by_one_that_the_parent_has_imported(tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text("print('mine')")
    fork, real = ends("-c", "import rich", cwd=tmp_path)
    assert fork == real == (0, "mine\n", "")


def test_forks_end_with_pytest(tmp_path: Path) -> None:
    code = f"""
import sys, time
from tests import warm
sleeper = warm.Popen([sys.executable, "-c", "import time; time.sleep(60)"], cwd={str(tmp_path)!r})
print(sleeper.pid, flush=True)
time.sleep(60)
"""
    with start(subprocess.Popen, "-c", code, cwd=ROOT) as process:
        pid = int(process.stdout.readline())
        assert is_alive(pid)
        process.kill()
    wait_until(lambda: not is_alive(pid), seconds=30)


def test_a_timeout_is_reported(tmp_path: Path) -> None:
    warm.run([sys.executable, "-c", "pass"], cwd=tmp_path)  # the parent is there
    began = time.monotonic()
    with pytest.raises(subprocess.TimeoutExpired):
        warm.run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2, cwd=tmp_path)
    assert time.monotonic() - began < 30
