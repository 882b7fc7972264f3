"""Fits in processes of their own: data, a teacher and undisturbed runs to compare with, and ways to kill."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdtrain.engine.resume import load_state
from kdtrain.store.checkpoint import load_model
from tests.faults.combinations import COMBINATIONS, Combination, write_materials
from tests.runs import assert_same_files
from tests.tools import ROOT

_FOR_TEACHER = "teacher: sgd, cosine"  # the combination whose model teaches the others
_PATIENCE = 300.0  # seconds for a fit that takes a few
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


@dataclass(frozen=True)
class Reference:
    """An undisturbed run.

    Attributes:
        folder: where it was started.
        seconds: what it took.
        files: what it left in ``logs``, by path, but for TensorBoard's files, whose names differ.
        renames: how many files it has given their names.
    """

    folder: Path
    seconds: float
    files: tuple[Path, ...]
    renames: int


class Laboratory:
    """Starts fits, and finds out whether anything was lost."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._data = write_materials(folder)
        self._references: dict[str, Reference] = {}

    @cached_property
    def teacher(self) -> Path:
        """The model that the combinations with a teacher are given."""
        given = self._undisturbed("given teacher", COMBINATIONS[_FOR_TEACHER])
        return given.folder / "logs/models/teacher.safetensors"

    def undisturbed(self, name: str) -> Reference:
        """Returns the combination's reference; the run is made when it is asked for first."""
        if name not in self._references:
            self._references[name] = self._undisturbed(f"{name}, undisturbed", COMBINATIONS[name])
        return self._references[name]

    def _undisturbed(self, name: str, combination: Combination) -> Reference:
        folder = self.new_folder(name, combination)
        began = time.monotonic()
        process = self.start(folder, combination)
        assert process.wait(_PATIENCE) == 0, (folder / "stderr").read_text()
        seconds = time.monotonic() - began
        logs = (path.relative_to(folder) for path in sorted((folder / "logs").rglob("*")) if path.is_file())
        files = tuple(path for path in logs if not path.name.startswith("events."))
        return Reference(folder, seconds, files, (folder / "renames").stat().st_size)

    def new_folder(self, name: str, combination: Combination) -> Path:
        """Makes a folder to start a combination in."""
        # PYTHONPATH would be split at a colon.
        folder = self.folder / "runs" / name.replace("/", " ").replace(":", "")
        folder.mkdir(parents=True)
        if combination.found:
            (folder / "logs/models").mkdir(parents=True)
            shutil.copy(self.teacher, folder / "logs/models/teacher.safetensors")
        return folder

    def start(
        self, folder: Path, combination: Combination, kill_at: int = 0, anew: bool = False
    ) -> subprocess.Popen[bytes]:
        """Starts a combination's fit, or goes on with the one that has been begun in ``folder``."""
        run = self.run_of(combination)
        begun = (folder / run / "config.toml").exists() and not anew
        if not begun and not anew:  # killed before it wrote anything: there is nothing to resume
            shutil.rmtree(folder / run, ignore_errors=True)
        if begun:
            return start(folder, ["--resume", run], kill_at)
        given = {"teacher": self.teacher} if "{teacher}" in combination.words else {}
        return start(folder, combination.flags(self._data | given), kill_at)

    @staticmethod
    def run_of(combination: Combination) -> Path:
        """Returns where the run's files are, from the folder that it is started in."""
        return Path("logs") / combination.mode / "version_0"

    def finish(self, folder: Path, combination: Combination, reference: Reference) -> None:
        """Goes on to the end, and asserts that nothing tells the run from one that was not disturbed."""
        check_checkpoints(folder)
        process = self.start(folder, combination)
        assert process.wait(_PATIENCE) == 0, (folder / "stderr").read_text()
        assert_same_files(folder / "logs", reference.folder / "logs")
        assert [str(path) for path in (folder / "tmp").iterdir()] == [], "temporary files stayed"


def check_checkpoints(folder: Path) -> None:
    """Asserts that all models and states are whole."""
    for file in folder.glob("logs/**/*.safetensors"):
        if file.name == "best.safetensors" or file.parent.name == "models":
            load_model(file)
        elif file.name == "last.safetensors":
            load_state(file)


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
