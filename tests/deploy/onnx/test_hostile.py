"""Hostile ONNX graphs end within the limits of memory and time; those of other programs are computed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from kdtrain.deploy.export.onnx_file import to_onnx
from kdtrain.deploy.onnx.network import OnnxClassifier
from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.deploy.onnx.reader import Assumed
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from tests.deploy.onnx.graphs import COMPUTED, GRAPHS, mnist_network, network, node
from tests.tools import ROOT

RANDOM = np.random.default_rng(0)


def floats(*shape: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    return RANDOM.normal(size=shape).astype(np.float32) * np.float32(0.1)


def classifier(nodes: list[NodeProto], constants: dict[str, Any], opset: int) -> onnx.ModelProto:
    """Returns a network in which ``nodes`` compute ``flat``, (N, 16), from ``maps``, (N, 4, 14, 14)."""
    values = {"w0": floats(4, 1, 3, 3), "w9": floats(10, 16), "b9": floats(10)} | constants
    ends = [
        node("Conv", "pixels w0", "maps", strides=[2, 2], pads=[1, 1, 1, 1]),
        *nodes,
        node("Gemm", "flat w9 b9", "logits", transB=1),
    ]
    return mnist_network(ends, values, opset)


def constant(name: str, value: Any) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))


def block(opset: int) -> onnx.ModelProto:
    """A residual block with batch normalisation, and torch's nodes for ``x.view(x.size(0), -1)``."""
    axes: dict[str, list[int]] = {} if opset >= 13 else {"axes": [0]}
    names = ("scale", "shift", "mean", "variance")
    nodes = [
        node("BatchNormalization", " ".join(("maps", *names)), "normal"),
        node("Relu", "normal", "active"),
        node("Conv", "active w1", "again", pads=[1, 1, 1, 1]),
        node("Add", "again maps", "sum"),
        node("Clip", "sum low high", "clipped"),
        node("AveragePool", "clipped", "pooled", kernel_shape=[7, 7], strides=[7, 7]),
        constant("zero", [0]),
        constant("first", 0),
        node("Shape", "pooled", "shape"),
        node("Gather", "shape first", "size", axis=0),
        node("Unsqueeze", "size" if axes else "size zero", "sizes", **axes),
        constant("rest", [-1]),
        node("Concat", "sizes rest", "wanted", axis=0),
        node("Reshape", "pooled wanted", "flat"),
    ]
    statistics = dict.fromkeys(names, np.ones(4, np.float32))
    ends = {"low": np.float32(0), "high": np.float32(6)}
    return classifier(nodes, {"w1": floats(4, 4, 3, 3)} | statistics | ends, opset)


def attention(opset: int) -> onnx.ModelProto:
    """Self-attention over 196 places of 4 channels, with layer normalisation in parts."""
    nodes = [
        node("Reshape", "maps rows", "places"),
        node("Transpose", "places", "tokens", perm=[0, 2, 1]),
        node("ReduceMean", "tokens last", "means"),
        node("Sub", "tokens means", "centred"),
        node("Pow", "centred two", "squares"),
        node("Sqrt", "squares", "lengths"),
        node("MatMul", "centred wq", "q"),
        node("Transpose", "centred", "turned", perm=[0, 2, 1]),
        node("MatMul", "q turned", "scores"),
        node("Softmax", "scores", "weights", axis=-1),
        node("MatMul", "weights lengths", "mixed"),
        node("Erf", "mixed", "bent"),
        node("Slice", "bent begin end axis", "few"),
        node("Flatten", "few", "flat", axis=1),
    ]
    return classifier(
        nodes,
        {"rows": [0, 4, 196], "two": np.float32(2), "wq": floats(4, 4)}
        | {"begin": [0], "end": [4], "axis": [1], "last": [-1]},
        opset,
    )


def activations(opset: int) -> onnx.ModelProto:
    """Activations and means of newer versions, channels that are split and joined, and sizes halved."""
    nodes = [
        node("HardSwish", "maps", "swish"),
        node("Split", "swish", "left right", axis=1, num_outputs=2),
        node("Sigmoid", "left", "gate"),
        node("Mul", "gate right", "gated"),
        node("Concat", "gated left", "joined", axis=1),
        helper.make_node("Resize", ["joined", "", "half"], ["halved"], mode="nearest"),
        node("Gelu", "halved", "smooth"),
        node("MaxPool", "smooth", "pooled", kernel_shape=[3, 3], strides=[2, 2]),
        node("GlobalAveragePool", "pooled", "one"),
        node("Expand", "one size", "four"),
        node("Dropout", "four", "kept"),
        node("Flatten", "kept", "flat"),
    ]
    return classifier(nodes, {"half": np.array([1, 1, 0.5, 0.5], np.float32), "size": [1, 1, 2, 2]}, opset)


@pytest.mark.parametrize(("make", "opset"), [(block, 11), (block, 21), (attention, 18), (activations, 20)])
def test_files_of_other_programs_are_computed(
    make: Callable[[int], onnx.ModelProto], opset: int, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    content = make(opset).SerializeToString()
    path.write_bytes(content)
    images = RANDOM.integers(0, 256, (7, 1, 28, 28)).astype(np.uint8)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (expected,) = session.run(["logits"], {"pixels": images.astype(np.float32)})
    np.testing.assert_allclose(OnnxModel.load(path).logits(images), expected, rtol=1e-4, atol=1e-4)


def test_a_large_network_is_computed_within_the_limits(tmp_path: Path) -> None:
    """ResNet-18 at 224x224; its authors count 1.8 billion multiply-adds."""
    flow.manual_seed(0)
    shape, classes = (3, 224, 224), tuple(map(str, range(10)))
    card = ModelCard("teacher", "flowvision:resnet18", "noise", shape, classes, (0.5,) * 3, (0.2,) * 3)
    (tmp_path / "model.onnx").write_bytes(to_onnx(build_model(card.arch, shape, len(classes)).eval(), card))
    images = RANDOM.integers(0, 256, (3, *shape)).astype(np.uint8)
    assert np.isfinite(OnnxModel.load(tmp_path / "model.onnx").logits(images)).all()
    assert 1.80e9 < OnnxClassifier(tmp_path / "model.onnx", Assumed(*shape)).form.multiply_adds < 1.83e9


def test_images_that_need_too_much_memory_together_are_computed_in_smaller_portions(tmp_path: Path) -> None:
    """Each takes 6 MB."""
    made = network([node("Tile", "pixels times")], {"times": [1, 2000, 1, 1]})
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    images = RANDOM.integers(0, 256, (250, 1, 28, 28)).astype(np.uint8)
    assert OnnxModel.load(tmp_path / "model.onnx").logits(images).shape == (250, 10)


def test_multiply_adds_are_those_of_the_layers(tmp_path: Path) -> None:
    """A convolution and two products, counted by hand."""
    nodes = [node("Flatten", "maps", "all", axis=1), node("MatMul", "all w1", "flat")]
    made = classifier(nodes, {"w1": floats(784, 16)}, 17)
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    form = OnnxClassifier(tmp_path / "model.onnx", Assumed(1, 28, 28)).form
    assert form.multiply_adds == 4 * 14 * 14 * 9 + 784 * 16 + 16 * 10


def test_declared_shapes_are_ignored(tmp_path: Path) -> None:
    """No shape that a file declares is used, not even a batch of one image."""
    made = classifier([node("Flatten", "maps", "flat")], {"w9": floats(10, 784)}, 17)
    made.graph.value_info.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, [1, 1]))
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    assert OnnxModel.load(tmp_path / "model.onnx").logits(np.zeros((3, 1, 28, 28), np.uint8)).shape == (3, 10)


KILOBYTES = 600_000  # of a process
SECONDS = 6  # of the CPU, for loading and computing, where a limit of 3 takes the place of 30
SAFE = 3 << 30  # bytes: a limit that protects the machine that runs this test

# Computes the largest portion. The limit of time is a tenth of the usual one, so that tests take less.
COMPUTE = """
import json, resource, sys
import numpy as np
from kdtrain.deploy.onnx import process
from kdtrain.errors import KdtrainError
begin = process._START.replace("; work()", "; work.__globals__['LONGEST'] = 3; work()")
assert begin != process._START
process._START = begin
for path in sys.argv[1:]:
    before, error_text = resource.getrusage(resource.RUSAGE_CHILDREN), None
    try:
        process.OnnxModel.load(path).logits(np.full((250, 1, 28, 28), 3, np.uint8))
    except KdtrainError as error:
        error_text = str(error)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(json.dumps([error_text, seconds, after.ru_maxrss]), flush=True)
"""


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=cwd, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, preexec_fn=limit, check=False,
    )  # fmt: skip


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (SAFE, SAFE))
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))


def write(folder: Path, name: str) -> Path:
    path = folder / f"{list(GRAPHS).index(name)}.onnx"
    path.write_bytes(GRAPHS[name]().SerializeToString())
    return path


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str | None, float, int]]:
    """Returns the error message, the CPU seconds and the KB of the process that computes it, by graph."""
    folder = tmp_path_factory.mktemp("graphs")
    ended = run("-c", COMPUTE, *(write(folder, name) for name in GRAPHS), cwd=folder)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    return dict(zip(GRAPHS, lines, strict=False))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_asks_for_gigabytes_or_minutes_ends_within_the_limits(
    ends: dict[str, tuple[str | None, float, int]], name: str
) -> None:
    error_text, seconds, kilobytes = ends[name]
    assert name in COMPUTED if error_text is None else f"/{list(GRAPHS).index(name)}.onnx" in error_text
    assert seconds < SECONDS
    assert kilobytes < KILOBYTES


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("infer", "--picture-index", "0", "--checkpoint"), "Expand of a constant"),
        (("eval",), "Expand by pixels"),
        (("bench",), "Tile"),
        (("serve", "--port", "0"), "Concat of shapes"),
    ],
    ids=["infer", "eval", "bench", "serve"],
)
def test_every_command_refuses_it_with_one_line(words: tuple[str, ...], name: str, tmp_path: Path) -> None:
    ended = run("-m", "kdtrain", *words, write(tmp_path, name), cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (1, "")
    (line,) = ended.stderr.splitlines()
    assert line.startswith(f"kdtrain: {tmp_path}/")


def test_a_sparse_file_of_2_gb_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.onnx").open("wb") as file:
        file.truncate(2**31)
    ended = run("-c", COMPUTE, tmp_path / "sparse.onnx", cwd=tmp_path)
    error_text, _, kilobytes = json.loads(ended.stdout)
    assert "2,147,483,647" in error_text
    assert kilobytes < KILOBYTES
