"""The example that repeats the paper runs from beginning to end, and its page shows what it found."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from examples.hinton2015.experiment import table
from kdtrain.data.dataset import Dataset
from kdtrain.store.checkpoint import load_tensors
from tests.tools import ROOT, files_in, write_digits

EXAMPLE = ROOT / "examples" / "hinton2015"
TINY = ("--val-size", "300", "--epochs", "1")
WAYS = ("transfer", "validation", "labels")
ROWS = ["teacher", "student", "student_kd"] + [
    row for name in ("without_3", "only_7_8") for row in (name, *(f"{name}_{way}" for way in WAYS))
]


def run(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLE / "experiment.py"), "--out", "out", "--data-dir", "digits", *TINY]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=240, check=False
    )


def test_every_row_is_measured_and_nothing_is_trained_twice(tmp_path: Path, mnist: Dataset) -> None:
    write_digits(tmp_path / "digits", mnist)
    first = run(tmp_path)
    assert first.returncode == 0, first.stderr
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert sorted(results) == sorted(ROWS)
    assert first.stdout == table(results) == (tmp_path / "out/results.md").read_text()
    for row, (result,) in results.items():
        assert 0 < result["errors"] == sum(result["errors_of_class"].values()) <= 300
        assert (result["shift"] is None) == (not row.endswith(WAYS))
    runs = [tmp_path / f"out/{name}_0/student_kd/version_0" for name in ("student_kd", "without_3")]
    states = [load_tensors(path / "checkpoints/last.safetensors")[1]["data"] for path in runs]
    assert states[0] != states[1], "one has seen other images than the other"

    files = sorted(files_in(tmp_path / "out"))
    again = run(tmp_path)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "kdtrain fit" not in again.stderr
    assert sorted(files_in(tmp_path / "out")) == files


def test_page_shows_what_was_measured() -> None:
    measured = table(json.loads((EXAMPLE / "results.json").read_text()))
    assert measured in (EXAMPLE / "README.md").read_text()
