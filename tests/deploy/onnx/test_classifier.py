"""Image classifiers in ONNX files that kdtrain did not write: real ones, odd ones, hostile ones.

``scripts/foreign_teachers.py`` made the files in ``foreign/`` with PyTorch, Keras and scikit-learn.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kdtrain import flow
from kdtrain.data.dataset import Dataset
from kdtrain.deploy.onnx.network import OnnxClassifier, OnnxNetwork
from kdtrain.deploy.onnx.reader import LAYOUT, SIZE, Assumed
from kdtrain.errors import CheckpointError
from kdtrain.metrics.probabilities import are_probabilities, to_logits
from tests.deploy.onnx.graphs import build, node
from tests.tools import ROOT

FOREIGN = ROOT / "tests" / "deploy" / "onnx" / "foreign"
MNIST = Assumed(1, 28, 28)
SCALES: dict[str, Callable[[Any], Any]] = {
    "torch.onnx": lambda pixels: (pixels / 255 - 0.1307) / 0.3081,
    "torch_of_8.onnx": lambda pixels: (pixels / 255 - 0.1307) / 0.3081,
    "torch_int8.onnx": lambda pixels: (pixels / 255 - 0.1307) / 0.3081,
    "keras.onnx": lambda pixels: pixels * 1.0,
    "sklearn.onnx": lambda pixels: pixels / 255,
}
"""The files, and what each does with pixels 0..255 before it takes them."""


@pytest.mark.parametrize(
    ("name", "layout", "batch", "probabilities"),
    [
        *(("torch.onnx", "nchw", 0, False), ("torch_of_8.onnx", "nchw", 8, False)),
        *(("torch_int8.onnx", "nchw", 0, False), ("keras.onnx", "nhwc", 0, True)),
        ("sklearn.onnx", "flat", 0, True),
    ],
)
def test_real_files_of_other_programs_recognise_digits(
    name: str, layout: str, batch: int, probabilities: bool, mnist: Dataset
) -> None:
    classifier = OnnxClassifier(FOREIGN / name, MNIST)
    assert (classifier.form.layout, classifier.form.batch) == (layout, batch)
    assert (classifier.form.shape, classifier.classes) == ((1, 28, 28), 10)
    images = SCALES[name](mnist.test.images[:301].astype(np.float32)).astype(np.float32)
    outputs = classifier.outputs(images)
    assert (outputs.argmax(axis=1) == mnist.test.labels[:301]).mean() > 0.9
    assert are_probabilities(outputs) == probabilities


def test_a_fixed_batch_gives_the_answers_of_a_free_one(mnist: Dataset) -> None:
    images = SCALES["torch.onnx"](mnist.test.images[:13].astype(np.float32)).astype(np.float32)
    free, fixed = (OnnxClassifier(FOREIGN / name, MNIST) for name in ("torch.onnx", "torch_of_8.onnx"))
    np.testing.assert_allclose(fixed.outputs(images), free.outputs(images), atol=1e-4)


def test_logarithms_of_probabilities_are_logits() -> None:
    probabilities = np.array([[0.7, 0.3, 0.0], [0.2, 0.2, 0.6]], np.float32)
    logits = to_logits(probabilities)
    assert np.isfinite(logits).all()
    powers = np.exp(logits.astype(np.float64))
    np.testing.assert_allclose(powers / powers.sum(1, keepdims=True), probabilities, atol=2e-7)


@pytest.mark.parametrize(
    ("outputs", "expected"),
    [
        *(([[0.5, 0.5], [0.9, 0.1]], True), ([[0.51, 0.51], [0.9, 0.08]], True)),
        *(([[0.5, 0.6], [0.9, 0.3]], False), ([[1.5, -0.5], [0.9, 0.1]], False)),
    ],
)
def test_probabilities_are_told_from_logits(outputs: list[list[float]], expected: bool) -> None:
    assert are_probabilities(np.array(outputs, np.float32)) == expected


def test_the_network_of_a_teacher_takes_logarithms_only_where_they_are_due(mnist: Dataset) -> None:
    path = FOREIGN / "sklearn.onnx"
    classifier = OnnxClassifier(path, MNIST)
    images = (mnist.test.images[:5] / 255).astype(np.float32)
    for gives in (False, True):
        network = OnnxNetwork(path, MNIST, classifier.form, gives)
        logits = network(flow.tensor(images)).numpy()
        outputs = classifier.outputs(images)
        np.testing.assert_array_equal(logits, to_logits(outputs) if gives else outputs)


def test_a_file_that_was_replaced_since_the_command_began_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "teacher.onnx"
    shutil.copy(FOREIGN / "torch.onnx", path)
    network = OnnxNetwork(path, MNIST, OnnxClassifier(path, MNIST).form, False)
    shutil.copy(FOREIGN / "torch_int8.onnx", path)
    with pytest.raises(CheckpointError, match="has been replaced"):
        network(flow.zeros(1, 1, 28, 28))


WEIGHT = np.arange(12, dtype=np.float32).reshape(4, 3)


def linear(
    shape: tuple[int | str, ...] = ("N", 1, 2, 2), output: tuple[int | str, ...] = ("N", 3), kind: int = 1
) -> onnx.ModelProto:
    """A network that another program could have written: a matrix product."""
    nodes = [
        node("Cast", "in", "floats", to=TensorProto.FLOAT),
        node("Flatten", "floats", "flat"),
        node("MatMul", "flat weight", "out"),
    ]
    return build(nodes, {"weight": WEIGHT}, ("in", kind, shape), ("out", TensorProto.FLOAT, output))


def saved(folder: Path, made: onnx.ModelProto) -> Path:
    path = folder / "made.onnx"
    path.write_bytes(made.SerializeToString())
    return path


@pytest.mark.parametrize(
    ("shape", "assumed", "expected"),
    [
        (("N", 1, 2, 2), Assumed(1, 2, 2), ("nchw", (1, 2, 2))),
        (("N", 2, 2, 1), Assumed(1, 2, 2), ("nhwc", (1, 2, 2))),
        (("N", 2, 2), Assumed(1, 2, 2), ("nhw", (1, 2, 2))),
        (("N", 4), Assumed(1, 2, 2), ("flat", (1, 2, 2))),
        (("N", 1, "h", "w"), Assumed(1, 2, 2), ("nchw", (1, 2, 2))),
        ((4, 1, 2, 2), Assumed(1, 2, 2), ("nchw", (1, 2, 2))),
        (("N", 1, 1, 4), Assumed(1, 1, 4, "nchw"), ("nchw", (1, 1, 4))),
        (("N", "c", "h", "w"), Assumed(1, 2, 2, "nhwc"), ("nhwc", (1, 2, 2))),
    ],
)
def test_the_form_of_the_images_is_that_of_the_graph(
    shape: tuple[int | str, ...], assumed: Assumed, expected: tuple[str, tuple[int, int, int]], tmp_path: Path
) -> None:
    output = (shape[0], 3)
    classifier = OnnxClassifier(saved(tmp_path, linear(shape, output)), assumed)
    assert (classifier.form.layout, classifier.form.shape) == expected
    images = np.arange(12, dtype=np.float32).reshape(3, *expected[1])
    np.testing.assert_allclose(classifier.outputs(images), images.reshape(3, 4) @ WEIGHT)


@pytest.mark.parametrize(
    ("shape", "assumed", "expected", "left_open"),
    [
        (("N", 1, 2, 2), Assumed(1, 9, 9, "nhwc", 5), ("nchw", (1, 2, 2)), ()),
        (("N", 1, "h", "w"), Assumed(1, 9, 9, "nhwc", 2), ("nchw", (1, 2, 2)), (SIZE,)),
        (("N", "c", "h", "w"), Assumed(1, 9, 9, "nhwc", 2), ("nhwc", (1, 2, 2)), (LAYOUT, SIZE)),
        (("N", 2, "w"), Assumed(1, 9, 9, "", 2), ("nhw", (1, 2, 2)), (SIZE,)),
        (("N", 4), Assumed(1, 2, 2, "", 7), ("flat", (1, 2, 2)), ()),
        (("N", 4), Assumed(1, 9, 9, "", 2), ("flat", (1, 2, 2)), (SIZE,)),
    ],
)
def test_what_a_graph_tells_wins_and_what_it_leaves_open_is_named(
    shape: tuple[int | str, ...],
    assumed: Assumed,
    expected: tuple[str, tuple[int, int, int]],
    left_open: tuple[str, ...],
    tmp_path: Path,
) -> None:
    form = OnnxClassifier(saved(tmp_path, linear(shape)), assumed).form
    assert ((form.layout, form.shape), form.left_open) == (expected, left_open)


def test_bytes_are_rounded_pixels(tmp_path: Path) -> None:
    classifier = OnnxClassifier(saved(tmp_path, linear(kind=TensorProto.UINT8)), Assumed(1, 2, 2))
    images = np.array([[[[0.4, 254.6], [300.0, -7.0]]]], np.float32)
    np.testing.assert_allclose(classifier.outputs(images), np.array([[0, 255, 255, 0]], np.float32) @ WEIGHT)


def two_inputs(made: onnx.ModelProto) -> None:
    made.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["N", 4]))
    made.graph.node.insert(2, helper.make_node("Mul", ["flat", "mask"], ["masked"]))
    made.graph.node[3].input[0] = "masked"


def no_table(made: onnx.ModelProto) -> None:
    made.graph.node.append(helper.make_node("ArgMax", ["out"], ["label"], axis=1, keepdims=0))
    made.graph.output[0].CopyFrom(helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]))


def loop(made: onnx.ModelProto) -> None:
    body = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "body", [], [])
    made.graph.node.append(helper.make_node("Loop", ["", "weight"], ["looped"], body=body))
    made.graph.node.append(helper.make_node("Add", ["out", "looped"], ["scores"]))
    made.graph.output[0].name = "scores"


def elsewhere(location: str) -> Callable[[onnx.ModelProto], None]:
    def change(made: onnx.ModelProto) -> None:
        tensor = made.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", "0"), ("length", "48")):
            entry = tensor.external_data.add()
            entry.key, entry.value = key, value

    return change


def constant_elsewhere(made: onnx.ModelProto) -> None:
    elsewhere("secret")(made)
    tensor = made.graph.initializer.pop()
    made.graph.node.insert(0, helper.make_node("Constant", [], ["weight"], value=tensor))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (two_inputs, "one input, and has 'in', 'mask'"),
        (no_table, "none of its outputs"),
        (loop, "contains 'Loop'"),
        (constant_elsewhere, "refers to another file"),
        (elsewhere("../secret"), "only files in its own folder are read"),
        (elsewhere("/etc/passwd"), "only files in its own folder are read"),
        (elsewhere("link"), "only files in its own folder are read"),
        (elsewhere("missing"), "missing, which cannot be read"),
        (elsewhere("short"), "short does not hold the weight"),
        (elsewhere("pipe"), "pipe, which cannot be read: it is a pipe"),
    ],
)
def test_files_that_are_no_classifiers_or_reach_outside_are_refused(
    change: Callable[[onnx.ModelProto], None], reason: str, tmp_path: Path
) -> None:
    (tmp_path / "secret").write_bytes(bytes(48))
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "link").symlink_to("../secret")
    (folder / "short").write_bytes(bytes(40))
    os.mkfifo(folder / "pipe")
    made = linear()
    change(made)
    with pytest.raises(CheckpointError, match=reason):
        OnnxClassifier(saved(folder, made), Assumed(1, 2, 2))


def test_weights_beside_the_file_are_read_and_count_in_its_digest(tmp_path: Path) -> None:
    made = linear()
    elsewhere("weights")(made)
    weight = np.arange(12, dtype=np.float32)
    (tmp_path / "weights").write_bytes(weight.tobytes())
    first = OnnxClassifier(saved(tmp_path, made), Assumed(1, 2, 2))
    images = np.ones((1, 1, 2, 2), np.float32)
    np.testing.assert_allclose(first.outputs(images)[0], weight.reshape(4, 3).sum(axis=0))
    (tmp_path / "weights").write_bytes((weight + 1).tobytes())
    assert OnnxClassifier(first.path, Assumed(1, 2, 2)).form.digest != first.form.digest


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        *((("N", 1, 1, 1), "--teacher-layout"), (("N", 5), "--teacher-input-size")),
        *((("N", 7, 2, 2), "--teacher-layout"), ((), "0 dimensions")),
        *((("N", 1, 4096, 4096), "at most 256 pixels"), ((2000, 1, 2, 2), "batches of 2,000 images")),
        (("N", 2, 2, 2, 1), "5 dimensions"),
    ],
)
def test_images_of_another_form_are_refused_with_the_flag_that_helps(
    shape: tuple[int | str, ...], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        OnnxClassifier(saved(tmp_path, linear(shape)), Assumed(1, 2, 2))
