"""``kdtrain export``: the file, the figures that are printed, and what goes wrong."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from kdtrain.data.datasets import load_dataset
from kdtrain.deploy import benchmark
from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.runtime import flow
from tests.cli.conftest import Call, Fitted, assert_explained
from tests.documents import DOCS, text_of


def test_file_is_written_and_agrees(fitted: Fitted, spawn: Call, tmp_path: Path) -> None:
    model, data = fitted.model("teacher"), fitted.flags[1]
    finished = spawn("export", model, "--output", "new/net.onnx", "--data-dir", data, cwd=tmp_path)
    assert finished.stderr == ""
    path = tmp_path / "new" / "net.onnx"
    size, checked, following = finished.stdout.splitlines()
    assert following == "Next: kdtrain serve new/net.onnx"
    assert size == f"new/net.onnx: {path.stat().st_size:,} bytes"
    difference = re.fullmatch(r".* 300 test images of tiles: 0 predictions differ .* (\S+)", checked)
    assert difference
    assert float(difference[1]) < 1e-4
    assert sorted(path.parent.iterdir()) == [path], "nothing else is left"
    assert OnnxModel.load(path).card.classes == ("0", "1", "2", "3")


def test_int8_comes_beside_it_with_a_table(
    fitted: Fitted, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "ROUNDS", 1)
    shutil.copy(fitted.model("student"), tmp_path / "student.safetensors")
    quantize = ("--quantize", "int8", "--calibration-images", "64", "--seed", "3")
    finished = call("export", "student.safetensors", *quantize, "--data-dir", fitted.flags[1])
    assert {path.name for path in tmp_path.iterdir()} == {
        "student.safetensors", "student.onnx", "student.int8.onnx"
    }  # fmt: skip
    assert "bytes, calibrated on 64 training images" in finished.stdout
    rows = [line.split() for line in finished.stdout.splitlines() if re.match(r"student\S+ +onnx ", line)]
    assert [row[:3] for row in rows] == [
        ["student.onnx", "onnx", "float32"], ["student.int8.onnx", "onnx", "int8"]
    ]  # fmt: skip
    test = load_dataset(data_dir=Path(fitted.flags[1])).test
    for row, name in zip(rows, ("student.onnx", "student.int8.onnx"), strict=True):
        model = OnnxModel.load(tmp_path / name)
        accuracy = np.mean(model.logits(test.images).argmax(axis=1) == test.labels)
        assert row[5] == f"{100 * accuracy:.2f}"
    about = OnnxModel.load(tmp_path / "student.int8.onnx").about
    assert (about["calibration_images"], about["calibration_seed"]) == (64, 3)


def test_json_has_the_documented_keys(fitted: Fitted, call: Call, tmp_path: Path) -> None:
    words = (fitted.model("student"), "--output", "net.onnx", "--data-dir", fitted.flags[1])
    finished = call("export", *words, "--json")
    assert finished.stderr == ""
    answer = json.loads(finished.stdout)
    (sentence,) = re.findall(r"With `--json` (.*)", text_of(DOCS / "deployment.md"))
    documented = set(re.findall(r"`(\w+)`", sentence)) - {"calibration_images"}  # of ``quantized``
    assert set(answer) == documented
    assert (answer["file"], answer["size_bytes"]) == ("net.onnx", (tmp_path / "net.onnx").stat().st_size)
    assert (answer["test_images"], answer["different_predictions"], answer["quantized"]) == (300, 0, None)
    assert 0 <= answer["largest_logit_difference"] <= answer["allowed_logit_difference"]


def test_a_file_that_disagrees_is_not_written(
    fitted: Fitted, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = OnnxModel.logits

    def wrong(self: OnnxModel, images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> object:
        return honest(self, images) + np.float32(0.01)

    monkeypatch.setattr(OnnxModel, "logits", wrong)
    (tmp_path / "old.onnx").write_bytes(b"precious")
    for name in ("old.onnx", "new.onnx"):
        flags = ("--output", name, "--data-dir", fitted.flags[1])
        finished = call.any_code("export", fitted.model("student"), *flags)
        assert_explained(finished, 1, "not written", "0 of 300 predictions differ", "1.0e-02")
    assert [path.name for path in tmp_path.iterdir()] == ["old.onnx"]
    assert (tmp_path / "old.onnx").read_bytes() == b"precious"


def test_a_oneflow_directory_is_exported_too(
    digits: Path, call: Call, tmp_path: Path, student: flow.nn.Module
) -> None:
    flow.save(student.state_dict(), str(tmp_path / "saved"))
    call("export", "saved", "--data-dir", digits)
    assert OnnxModel.load(tmp_path / "saved.onnx").about["checkpoint_sha256"] is None


def test_networks_that_cannot_be_exported_are_named(digits: Path, call: Call, tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text(
        "import oneflow as flow\n"
        "class Odd(flow.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = flow.nn.Linear(784, 10)\n"
        "    def forward(self, x):\n"
        "        return self.fc(flow.flatten(x, 1).cumsum(1))\n"
        "def odd(image_shape, num_classes):\n"
        "    return Odd()\n"
    )
    quick = ("--recipe=none", "--epochs=1", "--limit-train=100", "--val-size=100", "--data-dir", digits)
    call("fit", "--mode", "student", "--student-arch", "odd.py:odd", *quick)
    model = "logs/models/student.safetensors"
    flags = ("--arch", "odd.py:odd", "--data-dir", digits)
    finished = call.any_code("export", model, "--output", "odd.onnx", *flags)
    assert_explained(finished, 1, "cannot be exported", "operation cumsum")
    assert not (tmp_path / "odd.onnx").exists()


def test_wrong_flags_are_explained(fitted: Fitted, call: Call, tmp_path: Path) -> None:
    model, data = fitted.model("student"), ("--data-dir", fitted.flags[1])
    wrong = [
        (("--output", "model.pb"), 2, ("--output model.pb", ".onnx")),
        (("--quantize", "int4", *data), 2, ("'int4'", "int8")),
        (("--calibration-images", "0", *data), 2, ("--calibration-images is 0",)),
        (("--quantise", "int8"), 2, ("did you mean '--quantize'",)),
        ((), 2, ("trained on tiles", "--data-dir")),
    ]
    for flags, code, words in wrong:
        assert_explained(call.any_code("export", model, *flags), code, *words)
    assert_explained(call.any_code("export", "none.safetensors"), 1, "none.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_eval_takes_the_file(fitted: Fitted, call: Call) -> None:
    data = ("--data-dir", fitted.flags[1])
    call("export", fitted.model("student"), "--output", "net.onnx", *data)
    of_checkpoint = call("eval", fitted.model("student"), *data)
    of_file = call("eval", "net.onnx", *data)
    assert of_file.stdout.splitlines()[0] == "net.onnx (student_mlp) on the test set of tiles"
    *same, following = of_checkpoint.stdout.splitlines()[2:]
    assert of_file.stdout.splitlines()[2:] == same
    assert following.startswith("Next: kdtrain export "), "what is exported already needs no export"
