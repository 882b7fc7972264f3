"""``fit 2>&1 | head``: a closed pipe stops the output, and the fit goes on to its end."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Fitted
from tests.runs import metrics
from tests.tools import ROOT, read_result

FAILS = """
from kdtrain import Callback

class Fails(Callback):
    def on_epoch_end(self, run, event):
        raise ValueError("at last")
"""


def read_some(lines: int, *words: str | Path, cwd: Path) -> tuple[int, list[str]]:
    """Runs kdtrain with one pipe for stdout and stderr; so many lines of it are read before it is closed."""
    read, write = os.pipe()
    command = [sys.executable, "-m", "kdtrain", *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, cwd=cwd, env=environment, stdout=write, stderr=write) as process:
        os.close(write)
        with os.fdopen(read) as output:
            seen = [output.readline() for _ in range(lines)]
        try:
            return process.wait(timeout=120), seen
        finally:
            process.kill()


@pytest.mark.parametrize(
    ("mode", "lines", "flags"),
    [("student", 0, ()), ("student_kd", 1, ()), ("student", 1, ("--nproc-per-node", "2"))],
)
def test_the_fit_goes_on_and_its_files_are_complete(
    mode: str, lines: int, flags: tuple[str, ...], fitted: Fitted, tmp_path: Path
) -> None:
    teacher = ("--teacher-checkpoint", fitted.model("teacher")) if mode == "student_kd" else ()
    code, seen = read_some(lines, "fit", "--mode", mode, *fitted.flags, *teacher, *flags, cwd=tmp_path)
    assert code == 0
    assert all(seen)
    run = tmp_path / "logs" / mode / "version_0"
    assert read_result(run)["status"] == "completed"
    assert len(metrics(run)) == 3
    if not flags:
        assert metrics(run) == metrics(fitted.run(mode))
    assert (tmp_path / f"logs/models/{mode}.safetensors").exists()


def test_a_fit_that_fails_still_fails(fitted: Fitted, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(FAILS)
    words = ("fit", "--mode", "student", *fitted.flags, "--plugin", "mine.py:Fails")
    code, _ = read_some(0, *words, cwd=tmp_path)
    assert code == 1
    assert "mine.py:Fails, line 6" in read_result(tmp_path / "logs/student/version_0")["reason"]
