"""Faults around a fit: full disks, deleted folders, few file handles, failing plugins, closed outputs."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from kdtrain.engine.resume import load_state
from kdtrain.store.checkpoint import load_model
from tests.cli.conftest import EPOCH, Call, Finished, assert_explained, run
from tests.tools import ROOT, files_in, read_result, start_kdtrain, wait_until

RUN = Path("logs/student/version_0")
MOUNTS = shutil.which("unshare") is not None and (
    subprocess.run(["unshare", "--map-root-user", "--mount", "true"], check=False).returncode == 0
)

# Causes a fault in the third epoch.
MEDDLER = """
import os, shutil, subprocess
from pathlib import Path

from kdtrain import Callback

def fill(run):
    with open("logs/filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass

def protect(run):
    here = str(run.directory)  # a second mount over the first, on which a file is open for writing
    subprocess.run(["mount", "--bind", here, here], check=True)
    subprocess.run(["mount", "-o", "remount,bind,ro", here], check=True)

def delete(run):
    shutil.rmtree(run.directory)

def delete_all(run):
    shutil.rmtree("logs")

def spoil(run):
    next(iter(run.model.parameters())).data.fill_(float("nan"))

class Meddler(Callback):
    def __init__(self, how: str):
        self.how = globals()[how]

    def on_batch(self, run, event):
        if event.epoch == 3 and not self.how.__dict__.get("done"):
            self.how.done = True
            self.how(run)
"""


def words(tiles: Path, *more: str) -> list[str]:
    data = ("--data-dir", str(tiles), "--val-size=300", "--limit-train=256")
    flags = ("--recipe=none", *data, "--epochs=4", "--batch-size=64")
    return [sys.executable, "-m", "kdtrain", "fit", "--mode", "student", *flags, *more]


def fit(folder: Path, command: list[str]) -> Finished:
    (folder / "meddler.py").write_text(MEDDLER)
    return run(*command, cwd=folder)


def fit_on_small_disk(folder: Path, command: list[str], megabytes: int = 16, options: str = "rw") -> Finished:
    """Runs a command whose ``logs`` are on a disk of their own, and copies from it what is left there."""
    if not MOUNTS:
        pytest.skip("making a small disk is not allowed here")
    script = f"""
        mkdir logs && mount -t tmpfs -o size={megabytes}m,{options} small logs || exit 99
        "$@"; code=$?
        rm -f logs/filler; cp -r logs copy; umount -R logs; rmdir logs; mv copy logs; exit $code
    """
    return fit(folder, ["unshare", "--map-root-user", "--mount", "bash", "-c", script, "bash", *command])


def assert_second_epoch_is_kept(folder: Path, status: str | None = "failed") -> None:
    run = folder / RUN
    load_model(run / "checkpoints/best.safetensors")
    assert load_state(run / "checkpoints/last.safetensors").end.epoch == 2
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 2
    assert not [name for name in files_in(folder) if name.endswith(".tmp")]
    if status is not None:
        assert read_result(run)["status"] == status


def test_soak_in_short() -> None:
    combination = "student_kd: own teacher"  # interrupts and pairs have combinations of their own
    counts = ("--kills", "2", "--interrupts", "1", "--pairs", "1", "--only", f"{combination}$")
    finished = run(sys.executable, "-m", "tests.faults.inject", *counts)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "differences: none" in finished.stdout
    assert re.search(f"^{combination} +2 kills", finished.stdout, re.MULTILINE)
    for fault in ("SIGKILL, ", "SIGKILL between write and rename", "SIG(INT|TERM) ", "two fits at once"):
        assert re.search(rf"^\| {fault}", finished.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("how", "reason", "status"),
    [
        ("fill", "No space left on device", None),  # there is no room to write a status
        ("protect", "Read-only file system", "running"),
    ],
)
def test_disk_that_becomes_full_or_read_only_keeps_the_last_checkpoint(
    tmp_path: Path, tiles: Path, how: str, reason: str, status: str | None
) -> None:
    finished = fit_on_small_disk(tmp_path, words(tiles, "--plugin", f"meddler.py:Meddler,how={how}"))
    assert_explained(finished, 1, reason, str(RUN))
    assert_second_epoch_is_kept(tmp_path, status)


def test_disk_that_is_too_small_or_read_only_from_the_beginning(tmp_path: Path, tiles: Path) -> None:
    (tmp_path / "read-only").mkdir()
    finished = fit_on_small_disk(tmp_path / "read-only", words(tiles), options="ro")
    assert_explained(finished, 1, "Read-only file system", "logs")
    assert files_in(tmp_path / "read-only").keys() == {"meddler.py"}
    finished = fit_on_small_disk(tmp_path, words(tiles, "--student-arch", "hinton_1200"), megabytes=4)
    assert_explained(finished, 1, "No space left on device", ".safetensors")
    assert files_in(tmp_path / "logs/models") == {}


@pytest.mark.parametrize("how", ["delete", "delete_all"])
def test_directory_that_is_deleted_is_not_made_again(
    tmp_path: Path, tiles: Path, call: Call, how: str
) -> None:
    (tmp_path / "meddler.py").write_text(MEDDLER)
    plugin = ("--plugin", f"meddler.py:Meddler,how={how}")
    assert_explained(call.any_code(*words(tiles, *plugin)[3:]), 1, str(RUN))
    assert not (tmp_path / RUN).exists()


@pytest.mark.parametrize("handles", [8, 16, 32])
def test_too_few_file_handles_are_an_error(tmp_path: Path, tiles: Path, handles: int) -> None:
    limited = ["bash", "-c", f'ulimit -n {handles} && exec "$@"', "bash", *words(tiles)]
    finished = fit(tmp_path, limited)
    assert_explained(finished, 1, "Too many open files", str(handles), "ulimit -n 64")
    assert files_in(tmp_path).keys() == {"meddler.py"}


@pytest.mark.parametrize("limits", ["-n 64", "-S -n 16"])
@pytest.mark.parametrize("mode", ["student", "teacher"])
def test_few_file_handles_are_enough_or_raised(tmp_path: Path, tiles: Path, limits: str, mode: str) -> None:
    limited = ["bash", "-c", f'ulimit {limits} && exec "$@"', "bash", *words(tiles, "--epochs", "1")]
    finished = fit(tmp_path, [mode if word == "student" else word for word in limited])
    assert finished.returncode == 0, finished.stderr
    load_model(tmp_path / f"logs/models/{mode}.safetensors")


def test_loss_that_is_no_number_keeps_last_good_checkpoint(tmp_path: Path, tiles: Path, call: Call) -> None:
    (tmp_path / "meddler.py").write_text(MEDDLER)
    finished = call.any_code(*words(tiles, "--plugin", "meddler.py:Meddler,how=spoil")[3:])
    assert_explained(finished, 1, "epoch 3", "task = nan", "--lr")
    assert_second_epoch_is_kept(tmp_path)
    assert not (tmp_path / "logs/models/student.safetensors").exists()


@pytest.mark.parametrize("error", ["Exception", "KeyboardInterrupt", "StopIteration", "SystemExit"])
@pytest.mark.parametrize("hook", ["on_fit_start", "on_batch", "on_eval", "on_epoch_end", "on_fit_end"])
def test_whatever_a_plugin_raises_the_other_plugins_see_the_end(
    tmp_path: Path, tiles: Path, call: Call, hook: str, error: str
) -> None:
    (tmp_path / "clumsy.py").write_text(f"""
from pathlib import Path

from kdtrain import Callback

class Clumsy(Callback):
    def {hook}(self, run, *event):
        if not event or event[0].epoch >= 2:
            raise {error}("two left hands")

class Witness(Callback):
    def on_fit_end(self, run, event):
        Path("witness").write_text(event.status.value)
""")
    plugins = ("--plugin", "clumsy.py:Witness", "--plugin", "clumsy.py:Clumsy")
    finished = call.any_code(*words(tiles, *plugins)[3:])
    ctrl_c = error == "KeyboardInterrupt"
    if ctrl_c:
        assert_explained(finished, 130)
    else:
        assert_explained(finished, 1, f"Clumsy.{hook}", f"{error}: two left hands")
    expected = "interrupted" if ctrl_c else "failed"
    expected = "completed" if hook == "on_fit_end" else expected
    assert (tmp_path / "witness").read_text() == expected
    result = read_result(tmp_path / RUN)
    assert result["status"] == expected
    if expected == "failed":
        assert f"Clumsy.{hook}" in result["reason"]
    if hook != "on_fit_end":
        assert not (tmp_path / "logs/models/student.safetensors").exists()
    assert (tmp_path / RUN / "checkpoints/best.safetensors").exists() == (hook != "on_fit_start")


def test_a_second_ctrl_c_ends_at_once(tmp_path: Path, tiles: Path) -> None:
    (tmp_path / "slow.py").write_text("""
import time
from pathlib import Path

from kdtrain import Callback

class Slow(Callback):
    def on_batch(self, run, event):
        Path("training").touch()
        time.sleep(0.1)

    def on_fit_end(self, run, event):
        Path("closing").touch()
        time.sleep(60)
""")
    with start_kdtrain(*words(tiles, "--plugin", "slow.py:Slow")[3:], cwd=tmp_path) as process:
        try:
            for sign in ("training", "closing"):
                wait_until((tmp_path / sign).exists)
                process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=5)
        except BaseException:
            process.kill()
            raise
    assert process.returncode == 130
    assert err.splitlines()[-1].endswith(f"kdtrain fit --resume {tmp_path / RUN}")


FULL = "kdtrain: stdout cannot be written (No space left on device): its output stops here."


@pytest.mark.parametrize(
    "closed", [">&-", "2>&-", ">&- 2>&-", "</dev/null | head -1", "2>/dev/full", ">/dev/full", "&>/dev/full"]
)
def test_output_may_be_closed_or_full(tmp_path: Path, tiles: Path, closed: str) -> None:
    finished = fit(tmp_path, ["bash", "-c", f'set -o pipefail; "$@" {closed}', "bash", *words(tiles)])
    assert finished.returncode == 0, finished.stderr
    lines = finished.stderr.splitlines()
    assert lines[4:] == [FULL] * (closed == ">/dev/full")
    assert all(EPOCH.fullmatch(line) for line in lines[:4])
    load_model(tmp_path / "logs/models/student.safetensors")


def test_a_terminal_that_is_gone_ends_no_fit(tmp_path: Path, tiles: Path) -> None:
    """As when a connection over ssh ends: each write to the terminal is an error (EIO)."""
    terminal, stream = pty.openpty()
    os.close(terminal)
    process = subprocess.Popen(
        words(tiles), cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=stream, stderr=stream
    )
    os.close(stream)
    assert process.wait(60) == 0
    load_model(tmp_path / "logs/models/student.safetensors")


def test_results_that_cannot_be_written_are_an_error(tmp_path: Path) -> None:
    finished = run("bash", "-c", f"{sys.executable} -m kdtrain config > /dev/full", cwd=tmp_path)
    assert_explained(finished, 1, "stdout cannot be written: No space left on device")
