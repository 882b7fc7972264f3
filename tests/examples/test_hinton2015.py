"""The example that repeats the paper's experiment: it runs to its end, and its page shows its results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from examples.hinton2015 import experiment
from kdtrain.data.dataset import Dataset
from kdtrain.store.checkpoint import load_tensors
from tests.tools import ROOT, files_in, write_digits

EXAMPLE = ROOT / "examples" / "hinton2015"
TINY = ("--data-dir", "digits", "--val-size", "300", "--epochs", "1", "--student-arch", "student_mlp")
WAYS = ("transfer", "validation", "labels")
ROWS = [
    *("teacher", "student", "student_ls", "student_jitter", "student_kd", "student_kd_jitter"),
] + [row for name in ("without_3", "only_7_8") for row in (name, *(f"{name}_{way}" for way in WAYS))]


def test_every_row_is_measured_and_nothing_is_trained_twice(
    tmp_path: Path, mnist: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_digits(tmp_path / "digits", mnist, train=600)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    experiment.main(["--out", "out", *TINY])
    first = capsys.readouterr()
    assert first.err.count("kdtrain fit") == 8
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert sorted(results) == sorted(ROWS)
    assert first.out == experiment.table(results) == (tmp_path / "out/results.md").read_text()
    for row, (result,) in results.items():
        assert 0 < result["errors"] == sum(result["errors_of_class"].values()) <= 300
        assert (result["shift"] is None) == (not row.endswith(WAYS))
    runs = [tmp_path / f"out/{name}_0/student_kd/version_0" for name in ("student_kd", "without_3")]
    states = [load_tensors(path / "checkpoints/last.safetensors")[1]["data"] for path in runs]
    assert states[0] != states[1], "one has seen other images than the other"

    files = sorted(files_in(tmp_path / "out"))
    experiment.main(["--out", "out", *TINY])
    again = capsys.readouterr()
    assert again.out == first.out
    assert "kdtrain fit" not in again.err
    assert sorted(files_in(tmp_path / "out")) == files


def test_page_shows_what_was_measured() -> None:
    measured = experiment.table(json.loads((EXAMPLE / "results.json").read_text()))
    assert measured in (EXAMPLE / "README.md").read_text()
