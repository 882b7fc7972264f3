"""Fits in processes of their own, and ways to kill them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.tools import ROOT

LANES = 2  # how many fits are under way at once

# Python runs a file of this name as it starts. It counts, over all processes of a command, the files that are
# about to get their names, and kills at a given one.
SITECUSTOMIZE = """
import os, signal

rename = os.replace

def replace(source, target):
    counter = os.open(os.environ["RENAMES"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(counter, b".")
    number = os.fstat(counter).st_size
    os.close(counter)
    if number == int(os.environ["KILL_AT"]):
        os.killpg(0, signal.SIGKILL)
    rename(source, target)

os.replace = replace
"""


def start(folder: Path, words: Sequence[object], kill_at: int = 0) -> subprocess.Popen[bytes]:
    """Starts ``kdtrain fit`` in ``folder``, in a session and with a folder for temporary files of its own.

    Args:
        folder: where it is started; made if it is not there.
        words: the flags.
        kill_at: kills all its processes when so many files are written but the last has not its name yet.
    """
    tmp, code = folder / "tmp", folder / "code"
    for made in (tmp, code):
        made.mkdir(parents=True, exist_ok=True)
    (code / "sitecustomize.py").write_text(SITECUSTOMIZE)
    renames = folder / "renames"
    renames.unlink(missing_ok=True)
    own = {"PYTHONPATH": f"{ROOT}:{code}", "TMPDIR": str(tmp)}
    with (folder / "stderr").open("ab") as said:
        return subprocess.Popen(
            [sys.executable, "-m", "kdtrain", "fit", *map(str, words)],
            cwd=folder,
            env=os.environ | own | {"RENAMES": str(renames), "KILL_AT": str(kill_at)},
            stdout=subprocess.DEVNULL,
            stderr=said,
            start_new_session=True,
        )


def kill(process: subprocess.Popen[bytes], whom: str) -> None:
    """SIGKILLs the command alone, one of its children (the first), or all of them at once."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    try:
        pids = [int(pid) for pid in children.read_text().split()]
        if whom == "all":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(pids[0] if whom == "child" and pids else process.pid, signal.SIGKILL)
    except (OSError, ValueError):
        pass  # it has just ended


def wait_for_session(session: int) -> None:
    """Waits until no process of the session is left: children of a killed command close their files."""
    for _ in range(600):
        alive = False
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                alive |= int(stat.read_text().rpartition(")")[2].split()[3]) == session
            except OSError:
                continue
        if not alive:
            return
        time.sleep(0.1)
    raise AssertionError("children of a killed command live on")
