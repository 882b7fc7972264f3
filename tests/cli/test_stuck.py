"""A fit that hangs in C code: SIGINT ends it within 5 s, and --stall-timeout ends it by itself."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.cli.conftest import Fitted, assert_explained, signal_when_ready
from tests.conftest import RunKdtrain

PLUGIN = """
import ctypes
from pathlib import Path

from kdtrain import Callback

def stand_still():
    Path("stuck").touch()
    mutex = ctypes.create_string_buffer(64)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)
    ctypes.CDLL(None).pthread_mutex_lock(mutex)

class Stuck(Callback):
    def on_batch(self, run, event):
        {in_hook}

{in_module}
"""


def write_plugin(folder: Path, where: str) -> None:
    calls = {"in_hook": "pass", "in_module": ""} | {where: "stand_still()"}
    (folder / "stuck.py").write_text(PLUGIN.format(**calls))


@pytest.mark.parametrize("where", ["in_hook", "in_module"])
def test_one_ctrl_c_ends_a_fit_that_hangs_in_c_code(fitted: Fitted, tmp_path: Path, where: str) -> None:
    write_plugin(tmp_path, where)
    words = ("--mode", "student", "--plugin", "stuck.py:Stuck", *fitted.flags)
    finished = signal_when_ready(tmp_path, signal.SIGINT, lambda pid: (tmp_path / "stuck").exists(), *words)
    assert (finished.returncode, finished.stdout) == (130, "")
    assert "stuck.py, line 11" in finished.stderr
    assert ("logs/student/version_0" in finished.stderr) == (where == "in_hook")


def test_a_fit_without_progress_is_ended_and_goes_on_with_another_limit(
    fitted: Fitted, tmp_path: Path, run_kdtrain: RunKdtrain
) -> None:
    write_plugin(tmp_path, "in_hook")
    words = ("--mode", "student", "--plugin", "stuck.py:Stuck", "--stall-timeout", "1", *fitted.flags)
    ended = run_kdtrain("fit", *words, cwd=tmp_path, timeout=60)
    assert_explained(ended, 1, "stuck.py, line 11, in stand_still", "--stall-timeout")

    (tmp_path / "stuck.py").write_text("from kdtrain import Callback\n\nclass Stuck(Callback):\n    pass\n")
    resumed = run_kdtrain("fit", "--mode", "student", "--resume", "--stall-timeout", "60", cwd=tmp_path)
    assert resumed.returncode == 0, resumed.stderr
