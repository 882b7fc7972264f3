"""The cost of ONNX graphs: hostile ones are refused in seconds, those of other programs are computed."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from kdtrain.deploy.export.onnx_file import to_onnx
from kdtrain.deploy.onnx.cost import LARGEST_PEAK, LARGEST_WORK, graph_cost
from kdtrain.deploy.onnx.model import OnnxModel
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from tests.deploy.onnx.hostile_graphs import CARD, GRAPHS, ONE, network, node
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
    graph = helper.make_graph(
        ends,
        "main_graph",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    helper.set_model_props(made, {"kdtrain": json.dumps(CARD)})
    return made


def constant(name: str, value: Any) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(value)))


def view(opset: int) -> list[NodeProto]:
    """Returns torch's nodes for ``x.view(x.size(0), -1)``: a computed shape. Older files have Flatten."""
    if opset < 14:  # onnx cannot infer the result of Reshape with such a shape
        return [node("Flatten", "pooled", "flat")]
    return [
        constant("zero", [0]),
        constant("first", 0),
        node("Shape", "pooled", "shape"),
        node("Gather", "shape first", "size", axis=0),
        node("Unsqueeze", "size zero", "sizes"),
        constant("rest", [-1]),
        node("Concat", "sizes rest", "wanted", axis=0),
        node("Reshape", "pooled wanted", "flat"),
    ]


def block(opset: int) -> onnx.ModelProto:
    """A residual block with batch normalisation, pooled to 2x2, as torch exports it."""
    names = ("scale", "shift", "mean", "variance")
    nodes = [
        node("BatchNormalization", " ".join(("maps", *names)), "normal"),
        node("Relu", "normal", "active"),
        node("Conv", "active w1", "again", pads=[1, 1, 1, 1]),
        node("Add", "again maps", "sum"),
        node("Clip", "sum low high", "clipped"),
        node("AveragePool", "clipped", "pooled", kernel_shape=[7, 7], strides=[7, 7]),
        *view(opset),
    ]
    statistics = dict.fromkeys(names, np.ones(4, np.float32))
    ends = {"low": np.float32(0), "high": np.float32(6)}
    return classifier(nodes, {"w1": floats(4, 4, 3, 3)} | statistics | ends, opset)


def attention(opset: int) -> onnx.ModelProto:
    """Self-attention over 196 places of 4 channels, with layer normalisation in parts."""
    nodes = [
        node("Reshape", "maps rows", "places"),
        node("Transpose", "places", "tokens", perm=[0, 2, 1]),
        node("ReduceMean", "tokens", "means", axes=[-1])
        if opset < 18
        else node("ReduceMean", "tokens last", "means"),
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
        node("Split", "swish", "left right", axis=1, **({"num_outputs": 2} if opset >= 18 else {})),
        node("Sigmoid", "left", "gate"),
        node("Mul", "gate right", "gated"),
        node("Concat", "gated left", "joined", axis=1),
        helper.make_node("Resize", ["joined", "", "half"], ["halved"], mode="nearest"),
        node("Gelu", "halved", "smooth") if opset >= 20 else node("Softplus", "halved", "smooth"),
        node("MaxPool", "smooth", "pooled", kernel_shape=[3, 3], strides=[2, 2]),
        node("GlobalAveragePool", "pooled", "one"),
        node("Expand", "one size", "four"),
        node("Dropout", "four", "kept"),
        node("Flatten", "kept", "flat"),
    ]
    return classifier(nodes, {"half": np.array([1, 1, 0.5, 0.5], np.float32), "size": [1, 1, 2, 2]}, opset)


@pytest.mark.parametrize(
    ("make", "opset"),
    [(block, 11), (block, 13), (block, 18), (block, 21), (attention, 13), (attention, 17), (attention, 18),
     (attention, 21), (activations, 14), (activations, 18), (activations, 20), (activations, 21)],
)  # fmt: skip
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


def test_a_large_network_stays_far_below_the_limits() -> None:
    flow.manual_seed(0)
    shape, classes = (3, 224, 224), tuple(map(str, range(1000)))
    card = ModelCard("teacher", "flowvision:resnet50", "noise", shape, classes, (0.5,) * 3, (0.2,) * 3)
    content = to_onnx(build_model(card.arch, shape, len(classes)).eval(), card)
    cost = graph_cost(onnx, onnx.load_model_from_string(content), "pixels")
    assert 4.1e9 < cost.work < LARGEST_WORK / 10, "its authors count 4.1 billion multiply-adds"
    assert 3 * 4 * 224 * 224 < cost.peak < LARGEST_PEAK / 5


def test_work_is_that_of_the_layers() -> None:
    """A convolution and a product, counted by hand; reading and writing a number counts four."""
    nodes = [node("Flatten", "maps", "all", axis=1), node("MatMul", "all w1", "flat")]
    cost = graph_cost(onnx, classifier(nodes, {"w1": floats(784, 16)}, 17), "pixels")
    multiplied = 4 * 14 * 14 * 9 + 784 * 16 + 16 * 10
    moved = (784 + 36 + 784) + (784 + 784) + (784 + 784 * 16 + 16) + (16 + 160 + 10 + 10)
    assert cost.work == multiplied + 4 * moved
    assert cost.peak == 4 * (784 + 784)


def test_declared_shapes_are_ignored(tmp_path: Path) -> None:
    """No shape that a file declares is used, not even a batch of one image."""
    made = classifier([node("Flatten", "maps", "flat")], {"w9": floats(10, 784)}, 17)
    made.graph.value_info.append(helper.make_tensor_value_info("flat", TensorProto.FLOAT, [1, 1]))
    (tmp_path / "model.onnx").write_bytes(made.SerializeToString())
    assert OnnxModel.load(tmp_path / "model.onnx").logits(np.zeros((3, 1, 28, 28), np.uint8)).shape == (3, 10)


GIGABYTE = 1 << 20  # KB
SECONDS = 30  # on a busy machine; on an idle one each takes less than two
SAFE = 3 << 30  # bytes: a limit that protects the machine that runs this test

# Computes the largest batch.
COMPUTE = """
import json, resource, sys, time
import numpy as np
from kdtrain.errors import KdtrainError
from kdtrain.deploy.onnx.model import OnnxModel
for path in sys.argv[1:]:
    began, error_text = time.monotonic(), None
    try:
        OnnxModel.load(path).logits(np.full((250, 1, 28, 28), 3, np.uint8))
    except KdtrainError as error:
        error_text = str(error)
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps([error_text, time.monotonic() - began, peak + own]), flush=True)
"""


MEASURE = """
import pathlib, resource, subprocess, sys
code = subprocess.run([sys.executable, *sys.argv[1:]]).returncode
pathlib.Path("kilobytes").write_text(str(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss))
sys.exit(code)
"""


@dataclass(frozen=True)
class Ended:
    """A process that has ended: exit code, output, seconds, and the peak memory of its largest descendant."""

    code: int
    out: str
    err: str
    seconds: float
    kilobytes: int


def run(*words: str | Path, cwd: Path) -> Ended:
    """Runs Python, and measures the memory of it and of the processes that it starts."""
    began = time.monotonic()
    # A small process in between: a forked child's peak memory begins with that of pytest.
    done = subprocess.run(
        [sys.executable, "-I", "-c", MEASURE, *map(str, words)], cwd=cwd, text=True, capture_output=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)}, preexec_fn=limit, check=False,
    )  # fmt: skip
    took = time.monotonic() - began
    return Ended(done.returncode, done.stdout, done.stderr, took, int((cwd / "kilobytes").read_text()))


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (SAFE, SAFE))
    resource.setrlimit(resource.RLIMIT_CPU, (120, 120))


def write(folder: Path, name: str) -> Path:
    path = folder / f"{list(GRAPHS).index(name)}.onnx"
    path.write_bytes(GRAPHS[name]().SerializeToString())
    return path


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str | None, float, int]]:
    """Returns the error message, the seconds and the KB of the two processes, by graph."""
    folder = tmp_path_factory.mktemp("graphs")
    ended = run("-c", COMPUTE, *(write(folder, name) for name in GRAPHS), cwd=folder)
    lines = [json.loads(line) for line in ended.out.splitlines()]
    return dict(zip(GRAPHS, lines, strict=False))


@pytest.mark.parametrize("name", GRAPHS)
def test_a_graph_that_needs_gigabytes_or_minutes_is_refused(
    answers: dict[str, tuple[str | None, float, int]], name: str
) -> None:
    error_text, seconds, kilobytes = answers[name]
    assert error_text is not None, "it was computed"
    assert f"/{list(GRAPHS).index(name)}.onnx" in error_text
    assert seconds < SECONDS
    assert kilobytes < GIGABYTE


@pytest.mark.parametrize(
    ("words", "name"),
    [
        (("infer", "--picture-index", "0", "--checkpoint"), "Expand of a constant"),
        (("eval",), "Expand by images"),
        (("bench",), "MatMul of small ones"),
        (("serve", "--port", "0"), "Concat of shapes"),
    ],
    ids=["infer", "eval", "bench", "serve"],
)
def test_every_command_refuses_it_with_one_line(words: tuple[str, ...], name: str, tmp_path: Path) -> None:
    ended = run("-m", "kdtrain", *words, write(tmp_path, name), cwd=tmp_path)
    assert (ended.code, ended.out) == (1, "")
    (line,) = ended.err.splitlines()
    assert line.startswith(f"kdtrain: {tmp_path}/")
    assert ended.seconds < SECONDS
    assert ended.kilobytes < GIGABYTE


def test_a_sparse_file_of_2_gb_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "sparse.onnx").open("wb") as file:
        file.truncate(2**31)
    ended = run("-c", COMPUTE, tmp_path / "sparse.onnx", cwd=tmp_path)
    error_text, _, kilobytes = json.loads(ended.out)
    assert "2,147,483,647" in error_text
    assert kilobytes < GIGABYTE


def test_the_same_operators_are_allowed_at_a_small_size(tmp_path: Path) -> None:
    path = tmp_path / "small.onnx"
    path.write_bytes(network([node("Expand", "one size")], {"one": ONE, "size": [100]}).SerializeToString())
    assert OnnxModel.load(path).card.classes[0] == "0"
