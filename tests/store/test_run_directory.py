"""Each run gets its own directory."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdtrain.errors import KdtrainError, UsageError
from kdtrain.store.run_directory import claim_run_directory, run_directory
from tests.tools import ROOT

CLAIM_SOME = """
import sys
from pathlib import Path
from kdtrain.store.run_directory import claim_run_directory
print("ready", flush=True)
sys.stdin.readline()
for _ in range(5):
    print(claim_run_directory(Path(sys.argv[1]), "student").name)
"""


def test_versions_are_counted_for_each_mode(tmp_path: Path) -> None:
    logdir = tmp_path / "deep" / "logs"
    claimed = [claim_run_directory(logdir, mode) for mode in ("student", "student", "teacher", "student")]
    names = ("student/version_0", "student/version_1", "teacher/version_0", "student/version_2")
    assert claimed == [logdir / name for name in names]
    assert all(path.is_dir() and not os.listdir(path) for path in claimed)
    claimed[1].rmdir()
    assert claim_run_directory(logdir, "student").name == "version_3", "a removed version is not reused"


def test_runs_that_start_at_the_same_moment_get_different_directories(tmp_path: Path) -> None:
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", CLAIM_SOME, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(20)
    ]
    for run in runs:
        assert run.stdout is not None
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        assert run.stdin is not None
        run.stdin.write("go\n")
        run.stdin.flush()
    claimed = [name for run in runs for name in run.communicate(timeout=60)[0].split()]
    assert len(claimed) == 100
    assert len(set(claimed)) == 100
    assert sorted(os.listdir(tmp_path / "student")) == sorted(claimed)


def test_other_names_do_not_disturb(tmp_path: Path) -> None:
    folder = tmp_path / "student"
    for name in ("version_x", "version_", "version_-7", "version_5.old", "version_²", "Version_9", "40"):
        (folder / name).mkdir(parents=True)
    (folder / "version_3").write_text("a file")
    assert claim_run_directory(tmp_path, "student") == folder / "version_4"
    (folder / "version_0012").mkdir()
    assert claim_run_directory(tmp_path, "student") == folder / "version_13"


def test_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "student").write_text("a file")
    with pytest.raises(KdtrainError, match=f"{tmp_path / 'student'}: File exists"):
        claim_run_directory(tmp_path, "student")
    assert (tmp_path / "student").read_text() == "a file"


def fail(logdir: Path, error: KdtrainError, file: str, resume: Path | None = None) -> Path:
    """Lets a run write a file and end with an error; returns its directory."""
    with contextlib.suppress(KdtrainError), run_directory(logdir, "student", resume) as directory:
        (directory / file).parent.mkdir(parents=True, exist_ok=True)
        (directory / file).touch()
        raise error
    return directory


def test_only_settings_that_are_refused_before_any_training_leave_no_directory(tmp_path: Path) -> None:
    refusal = UsageError("there is no such layer")
    assert not fail(tmp_path, refusal, "config.toml").exists()
    assert (fail(tmp_path, refusal, "seed_0/teacher/metrics.jsonl") / "seed_0/teacher/metrics.jsonl").exists()
    assert (fail(tmp_path, KdtrainError("the disk is full"), "config.toml") / "config.toml").exists()
    begun = claim_run_directory(tmp_path, "student")
    assert fail(tmp_path, refusal, "config.toml", resume=begun) == begun
    assert (begun / "config.toml").exists()
