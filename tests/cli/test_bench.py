"""``kdtrain bench``: checkpoints and ONNX files side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kdtrain.data.dataset import Dataset
from tests.cli.conftest import Call, Fitted, assert_explained, untrained_teacher
from tests.tools import read_tested


@pytest.fixture(scope="module")
def models(fitted: Fitted, spawn: Call, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with logs/models as after a fit and an export."""
    folder = tmp_path_factory.mktemp("bench")
    target = folder / "logs" / "models"
    target.mkdir(parents=True)
    for mode in ("teacher", "student"):
        (target / f"{mode}.safetensors").write_bytes(fitted.model(mode).read_bytes())
    flags = ("--output", target / "student.onnx", "--data-dir", fitted.flags[1])
    spawn("export", target / "student.safetensors", *flags, cwd=folder)
    return folder


def test_all_trained_models_are_compared(models: Path, fitted: Fitted, call: Call) -> None:
    flags = ("--rounds", "2", "--batch-size", "50", "--data-dir", fitted.flags[1])
    finished = call("bench", *flags, "--json", cwd=models)
    assert finished.stderr == ""
    student, same, teacher = json.loads(finished.stdout)
    assert [row["model"] for row in (student, same, teacher)] == [
        f"logs/models/{name}" for name in ("student.onnx", "student.safetensors", "teacher.safetensors")
    ]
    assert [row["runtime"] for row in (student, same, teacher)] == ["onnx float32", "oneflow", "oneflow"]
    for row, mode in ((student, "student"), (same, "student"), (teacher, "teacher")):
        result = read_tested(fitted.run(mode))
        assert row["errors"] == result["test_errors"]
        assert row["accuracy_fraction"] == result["test_accuracy_fraction"]
        assert row["parameters"] == result["parameters"]
        assert row["size_bytes"] == (models / row["model"]).stat().st_size
        assert 0 < row["latency_p50_ms"] <= row["latency_p95_ms"] < 10_000
        assert row["throughput_images_per_second"] > 1
        assert (row["rounds"], row["batch_size"], row["threads"]) == (2, 50, 1)


def test_table_has_a_row_for_each(models: Path, fitted: Fitted, call: Call) -> None:
    flags = ("--rounds", "1", "--threads", "2", "--data-dir", fitted.flags[1])
    named = ("logs/models/student.onnx", "logs/models/teacher.safetensors")
    finished = call("bench", *named, *flags, cwd=models)
    lines = finished.stdout.splitlines()
    assert lines[0] == "tiles: 300 test images, 1 round"
    assert [line.split()[0] for line in lines if "onnx float32" in line or "oneflow  " in line] == [
        "student.onnx", "teacher.safetensors"
    ]  # fmt: skip
    assert "On 2 cores, onnxruntime with 2 threads" in finished.stdout


def test_what_cannot_be_compared_is_named(
    models: Path, fitted: Fitted, call: Call, mnist: Dataset, tmp_path: Path
) -> None:
    data = ("--data-dir", fitted.flags[1])
    digits = untrained_teacher(tmp_path / "digits.safetensors", mnist)
    student = models / "logs" / "models" / "student.onnx"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(student.read_bytes()[:-500])
    wrong = [
        ((), 1, ("no model in logs/models", "kdtrain fit")),
        ((student, digits, *data), 1, ("digits.safetensors", "1x28x28 in 10 classes", "1x12x12 in 4")),
        ((broken, *data), 1, ("broken.onnx", "damaged")),
        ((tmp_path / "none.onnx", *data), 1, ("no model", "none.onnx")),
        ((student, "--rounds", "0", *data), 2, ("--rounds is 0",)),
        ((student, "--threads", "x"), 2, ("--threads is 'x'", "whole number")),
        ((student,), 2, ("trained on tiles", "--data-dir")),
    ]
    for arguments, code, words in wrong:
        assert_explained(call.any_code("bench", *arguments), code, *words)
