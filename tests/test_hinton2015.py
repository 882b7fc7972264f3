"""The example that repeats the paper's experiments runs from beginning to end, and goes on where it was."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from kdtrain.data.datasets import Dataset
from kdtrain.store.checkpoint import load_model
from tests.conftest import ROOT
from tests.tools import files_in, write_digits

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


def test_every_row_of_the_table_is_measured(tmp_path: Path, mnist: Dataset) -> None:
    write_digits(tmp_path / "digits", mnist)
    first = run(tmp_path)
    assert first.returncode == 0, first.stderr
    assert first.stdout == (tmp_path / "out/results.md").read_text()
    assert first.stdout.count("\n") == len(ROWS) + 2
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert sorted(results) == sorted(ROWS)
    for row, ((errors, of_class, shift),) in {
        row: [tuple(one[key] for key in ("errors", "errors_of_class", "shift")) for one in runs]
        for row, runs in results.items()
    }.items():
        assert 0 < errors == sum(of_class.values()) <= 300
        assert (shift is None) == (not row.endswith(WAYS))
    never_seen = load_model(tmp_path / "out/without_3_0/models/student_kd.safetensors")
    assert never_seen.card.arch == "hinton_800"
    files = files_of_runs(tmp_path)
    again = run(tmp_path)
    assert (again.returncode, again.stdout) == (0, first.stdout)
    assert "kdtrain fit" not in again.stderr, "what is trained is not trained again"
    assert files_of_runs(tmp_path) == files


def files_of_runs(folder: Path) -> list[str]:
    return sorted(name for name in files_in(folder / "out"))
