"""``kdtrain eval``: the figures of a checkpoint, and checkpoints from elsewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from tests.cli.conftest import LOGDIR, Call, Fitted, assert_explained
from tests.tools import read_tested


def test_text_names_the_model_and_shows_every_confusion(fitted: Fitted, spawn: Call) -> None:
    model = fitted.model("student").relative_to(fitted.folder)
    finished = spawn("eval", model, "--data-dir", fitted.flags[1], cwd=fitted.folder)
    assert finished.stderr == ""
    test = read_tested(fitted.run("student"))
    heading, summary, *table = finished.stdout.splitlines()
    assert heading == f"{LOGDIR}/models/student.safetensors (student_mlp) on the test set of tiles"
    assert summary.startswith(
        f"{100 * test['test_accuracy_fraction']:.2f} % accuracy, {test['test_errors']} errors in 300"
    )
    rows = [re.findall(r"[\d.]+|·", line) for line in table if re.match(r" *[0-3] ", line)]
    confusion = np.array([[0 if cell == "·" else int(cell) for cell in row[2:]] for row in rows])
    assert confusion.shape == (4, 4)
    assert confusion.sum() == 300
    assert confusion.trace() == 300 - test["test_errors"]


@pytest.mark.parametrize("which", ["best", "last"])
def test_json_has_the_same_figures(fitted: Fitted, call: Call, which: str) -> None:
    checkpoint = fitted.run("student") / f"checkpoints/{which}.safetensors"
    finished = call("eval", checkpoint, "--data-dir", fitted.flags[1], "--json", cwd=fitted.folder)
    assert finished.stderr == ""
    figures = json.loads(finished.stdout)
    assert (figures["checkpoint"], figures["arch"], figures["dataset"]) == (
        str(checkpoint), "student_mlp", "tiles"
    )  # fmt: skip
    confusion = np.array(figures["confusion_matrix_truth_by_prediction"])
    assert confusion.trace() == figures["images"] - figures["errors"]
    assert figures["accuracy_fraction"] == confusion.trace() / confusion.sum()
    for index, row in enumerate(figures["per_class"]):
        assert row["images"] == confusion[index].sum()
        assert row["accuracy_fraction"] == pytest.approx(confusion[index, index] / confusion[index].sum())


@pytest.mark.parametrize("arch", ["teacher_cnn", "student_mlp"])
def test_oneflow_directory_is_a_checkpoint_like_any_other(
    digits: Path, mnist: Dataset, call: Call, tmp_path: Path, arch: str
) -> None:
    flow.manual_seed(0)
    model = build_model(arch, mnist.image_shape, mnist.num_classes)
    flow.save(model.state_dict(), str(tmp_path / "saved"))
    finished = call("eval", "saved", "--data-dir", digits, "--json")
    figures = json.loads(finished.stdout)
    assert figures["arch"] == arch
    test = load_dataset(data_dir=digits).test
    inputs = ((test.images / 255.0 - 0.1307) / 0.3081).astype(np.float32)  # the sample's normalisation
    with flow.no_grad():
        predicted = model.eval()(flow.tensor(inputs)).numpy().argmax(axis=1)
    assert figures["errors"] == (predicted != test.labels).sum()

    named = ("--model-type", "teacher" if arch == "teacher_cnn" else "student", "--checkpoint", "saved")
    finished = call("infer", "--picture-index", "0", *named, "--data-dir", digits, "--json")
    assert json.loads(finished.stdout)[0]["prediction"] == str(predicted[0])

    teaches = ("--teacher-arch", arch, "--teacher-checkpoint", "saved", "--data-dir", digits)
    quick = ("--recipe", "none", "--val-size", "1300", "--epochs", "1")
    finished = call("fit", "--mode", "student_kd", *teaches, *quick)
    assert "saved" in finished.stderr.splitlines()[0]


@pytest.mark.parametrize("damage", ["cut off", "one bit", "text", "empty", "folder"])
def test_what_is_not_a_checkpoint_is_refused_in_a_sentence(
    fitted: Fitted, call: Call, tmp_path: Path, damage: str
) -> None:
    path, intact = tmp_path / "model.safetensors", fitted.model("student").read_bytes()
    flipped = intact[:-1000] + bytes([intact[-1000] ^ 1]) + intact[-999:]
    content = {"cut off": intact[:5000], "one bit": flipped, "text": b"weights\n" * 40, "empty": b""}
    if damage == "folder":
        path.mkdir()
    else:
        path.write_bytes(content[damage])
    for words in (("eval", path), ("infer", "--picture-index", "0", "--checkpoint", path)):
        assert_explained(call.any_code(*words), 1, "model.safetensors")


def test_data_that_do_not_fit_the_model_are_named(fitted: Fitted, digits: Path, call: Call) -> None:
    model = fitted.model("student")
    finished = call.any_code("eval", model, "--data-dir", digits)
    assert_explained(finished, 1, "1x12x12 in 4 classes", "1x28x28 in 10 classes")
    assert_explained(call.any_code("eval", model), 2, "trained on tiles", "--data-dir")
    assert_explained(call.any_code("eval", model, "--dataset", "mnst"), 2, "'mnist'")
