"""Each run gets its own directory."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
from pathlib import Path

import pytest

from kdtrain.errors import KdtrainError, UsageError
from kdtrain.store.run_directory import check_name, claim_run_directory, latest_run, run_directory

FORK = multiprocessing.get_context("fork")


def test_versions_are_counted_for_each_mode(tmp_path: Path) -> None:
    logdir = tmp_path / "deep" / "logs"
    claimed = [claim_run_directory(logdir, mode) for mode in ("student", "student", "teacher", "student")]
    names = ("student/version_0", "student/version_1", "teacher/version_0", "student/version_2")
    assert claimed == [logdir / name for name in names]
    assert all(path.is_dir() and not os.listdir(path) for path in claimed)
    claimed[1].rmdir()
    assert claim_run_directory(logdir, "student").name == "version_3", "a removed version is not reused"


def test_runs_that_start_at_the_same_moment_get_different_directories(tmp_path: Path) -> None:
    start = FORK.Barrier(20)

    def claim_some() -> None:
        start.wait(30)
        for _ in range(5):
            claim_run_directory(tmp_path, "student")

    processes = [FORK.Process(target=claim_some) for _ in range(20)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 20
    assert len(os.listdir(tmp_path / "student")) == 100


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


def test_a_name_takes_the_place_of_the_number_and_is_given_once(tmp_path: Path) -> None:
    assert claim_run_directory(tmp_path, "student", "warm") == tmp_path / "student/warm"
    assert claim_run_directory(tmp_path, "teacher", "warm") == tmp_path / "teacher/warm"
    with pytest.raises(UsageError, match="student/warm exists already"):
        claim_run_directory(tmp_path, "student", "warm")
    with pytest.raises(UsageError, match="student/warm exists already"):
        check_name(tmp_path, "student", "warm")
    assert claim_run_directory(tmp_path, "student").name == "version_0"


def test_the_latest_run_may_have_a_name(tmp_path: Path) -> None:
    for begun, name in enumerate(("version_1", "cold", "version_0", "version_2", "warm", "version_10")):
        folder = tmp_path / "student" / name
        folder.mkdir(parents=True)
        (folder / "config.toml").touch()
        os.utime(folder / "config.toml", (begun, begun))
    assert latest_run(tmp_path, "student").name == "version_10"
    os.utime(tmp_path / "student/warm/config.toml", (10, 10))
    assert latest_run(tmp_path, "student").name == "warm"
    os.utime(tmp_path / "student/version_0/config.toml", (20, 20))
    assert latest_run(tmp_path, "student").name == "warm", "of versions, the number decides"
