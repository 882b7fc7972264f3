"""Data, a teacher and undisturbed runs, which fault injection compares with."""

from __future__ import annotations

import shutil
import subprocess
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from kdtrain.engine.resume import load_state
from kdtrain.store.checkpoint import load_model
from tests.faults.combinations import COMBINATIONS, Combination, write_materials
from tests.faults.processes import start
from tests.runs import assert_same_files

_FOR_TEACHER = "teacher: sgd, cosine"  # the combination whose model teaches the others
_PATIENCE = 300.0  # seconds for a fit that takes a few


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
