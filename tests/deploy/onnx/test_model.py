"""Untrusted ONNX files: refused before anything is computed, and computed by a process with limits."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.deploy.onnx.reader import METADATA
from kdtrain.errors import CheckpointError, KdtrainError
from tests.cli.conftest import run_python
from tests.deploy.onnx import graphs
from tests.deploy.onnx.graphs import build, node
from tests.tools import ROOT, is_alive, wait_until

CARD = graphs.CARD | {
    "image_shape": [1, 2, 2],
    "classes": ["a", "b"],
    "parameters": 8,
}


def model() -> onnx.ModelProto:
    """A network that kdtrain could have written: sums of pixels."""
    nodes = [node("Flatten", "pixels", "flat"), node("MatMul", "flat weight", "logits")]
    weights = {"weight": np.arange(8, dtype=np.float32).reshape(4, 2)}
    pixels, logits = ("pixels", 1, ("N", 1, 2, 2)), ("logits", 1, ("N", 2))
    return build(nodes, weights, pixels, logits, about=CARD)


def with_metadata(made: onnx.ModelProto, **entries: Any) -> None:
    helper.set_model_props(made, {METADATA: json.dumps(CARD | entries)})


def foreign(made: onnx.ModelProto) -> None:
    made.graph.node[0].domain = "com.example"


def functions(made: onnx.ModelProto) -> None:
    made.functions.add().name = "own"


def other_input(made: onnx.ModelProto) -> None:
    made.graph.input[0].name = "images"
    made.graph.node[0].input[0] = "images"


def two_inputs(made: onnx.ModelProto) -> None:
    made.graph.input.add().CopyFrom(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def fixed_batch(made: onnx.ModelProto) -> None:
    made.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1


def whole_numbers(made: onnx.ModelProto) -> None:
    made.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64


def no_outputs(made: onnx.ModelProto) -> None:
    del made.graph.output[:]


def unknown_node(made: onnx.ModelProto) -> None:
    made.graph.node[0].op_type = "Nonsense"


def without_kernel(made: onnx.ModelProto) -> None:
    """Nothing is wrong with it, but onnxruntime has no code for it."""
    made.graph.node[1].output[0] = "sums"
    made.graph.node.extend(
        [
            helper.make_node("Cast", ["sums"], ["brief"], to=TensorProto.BFLOAT16),
            helper.make_node("Neg", ["brief"], ["negative"]),
            helper.make_node("Cast", ["negative"], ["logits"], to=TensorProto.FLOAT),
        ]
    )


EDITS: list[tuple[Callable[[onnx.ModelProto], None], str]] = [
    (foreign, "'Flatten'"),
    (functions, "functions"),
    (other_input, "pixels or inputs"),
    (two_inputs, "pixels or inputs"),
    (fixed_batch, "pixels or inputs"),
    (whole_numbers, "pixels or inputs"),
    (no_outputs, "pixels or inputs"),
    (unknown_node, "'Nonsense'"),
    (without_kernel, "onnxruntime"),
    (lambda made: made.ClearField("metadata_props"), "kdtrain wrote"),
    (lambda made: made.ClearField("graph"), "pixels or inputs"),
    (lambda made: with_metadata(made, classes=["a", "b", "c"]), "N, 3"),
    (lambda made: with_metadata(made, image_shape=[1, 1 << 30, 2]), r"model\.onnx"),
    (lambda made: with_metadata(made, std=[0]), r"model\.onnx"),
    (lambda made: with_metadata(made, mean=[float("nan")]), r"model\.onnx"),
    (lambda made: with_metadata(made, arch=7), "arch"),
    (lambda made: with_metadata(made, precision="int3"), "precision"),
    (lambda made: with_metadata(made, parameters="many"), "parameters"),
    (lambda made: helper.set_model_props(made, {METADATA: "{"}), "JSON"),
    (lambda made: helper.set_model_props(made, {METADATA: "[" * 100_000}), "JSON"),
    (lambda made: helper.set_model_props(made, {METADATA: "[]"}), "mode"),
]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    folder = tmp_path / "inner"
    folder.mkdir()
    return folder / "model.onnx"


def test_a_valid_file_computes(path: Path) -> None:
    path.write_bytes(model().SerializeToString())
    images = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2)
    expected = images.reshape(2, 4).astype(np.float32) @ np.arange(8, dtype=np.float32).reshape(4, 2)
    np.testing.assert_array_equal(OnnxModel.load(path).logits(images), expected)


@pytest.mark.parametrize(("edit", "named"), EDITS)
def test_what_kdtrain_never_writes_is_refused(
    path: Path, edit: Callable[[onnx.ModelProto], None], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = model()
    edit(made)
    path.write_bytes(made.SerializeToString())
    monkeypatch.chdir(path.parent)
    with pytest.raises(CheckpointError, match=named) as caught:
        OnnxModel.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_onnx_file_is_refused(path: Path) -> None:
    whole = model().SerializeToString()
    for content in (b"", b"weights\n" * 40, whole[:-20], whole[: len(whole) // 2], b"PK\x03\x04" + whole):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"^{path}"):
            OnnxModel.load(path)
    path.unlink()
    with pytest.raises(CheckpointError, match=str(path)):
        OnnxModel.load(path)
    path.mkdir()
    with pytest.raises(CheckpointError, match=str(path)):
        OnnxModel.load(path)


def test_logits_of_another_shape_are_refused(path: Path) -> None:
    made = model()  # declares N x 2, computes 1 x 2
    made.graph.node[1].output[0] = "many"
    made.graph.node.append(helper.make_node("ReduceSum", ["many", "axis"], ["logits"], keepdims=1))
    made.graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "axis"))
    path.write_bytes(made.SerializeToString())
    with pytest.raises(CheckpointError, match="for 3 images, its output 'logits' has the shape"):
        OnnxModel.load(path).logits(np.zeros((3, 1, 2, 2), np.uint8))


def test_it_needs_no_oneflow() -> None:
    code = (
        "import sys, kdtrain.deploy.onnx.process; print([name for name in sys.modules if 'oneflow' in name])"
    )
    assert run_python(code).stdout == "[]\n"


@pytest.mark.parametrize("missing", ["onnx", "onnxruntime"])
def test_a_missing_package_is_named_with_its_remedy(
    path: Path, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.write_bytes(model().SerializeToString())
    (tmp_path / f"{missing}.py").write_text(f"raise ImportError('{missing} is not here')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(KdtrainError, match=rf"\({missing}|{missing} .*pip install 'kdtrain\[onnx\]'"):
        OnnxModel.load(path)


IMAGES = np.arange(8, dtype=np.uint8).reshape(2, 1, 2, 2)


@pytest.fixture
def file(path: Path) -> Path:
    path.write_bytes(model().SerializeToString())
    return path


def pid_of(loaded: OnnxModel) -> int:
    return loaded.process._process.pid


def test_it_ends_with_the_model(file: Path) -> None:
    loaded = OnnxModel.load(file)
    pid = pid_of(loaded)
    del loaded
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_it_ends_when_its_parent_is_killed(file: Path) -> None:
    code = (
        "import sys, time; from kdtrain.deploy.onnx.process import OnnxModel;"
        "model = OnnxModel.load(sys.argv[1]);"
        "print(model.process._process.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(file)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    wait_until(lambda: not is_alive(pid), seconds=10)


def test_one_that_has_died_is_started_again(file: Path) -> None:
    loaded = OnnxModel.load(file)
    expected, first = loaded.logits(IMAGES), pid_of(loaded)
    os.kill(first, signal.SIGKILL)
    loaded.process._process.wait()
    np.testing.assert_array_equal(loaded.logits(IMAGES), expected)
    assert pid_of(loaded) != first


def test_a_restart_refuses_a_file_that_has_been_replaced(file: Path) -> None:
    loaded = OnnxModel.load(file)
    file.write_bytes(file.read_bytes().replace(b'"parameters": 8', b'"parameters": 9'))
    os.kill(pid_of(loaded), signal.SIGKILL)
    loaded.process._process.wait()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="has been replaced"):
            loaded.logits(IMAGES)


@pytest.mark.parametrize(("number", "cause"), [(signal.SIGALRM, "30 seconds"), (signal.SIGABRT, "SIGABRT")])
def test_the_cause_of_its_death_is_named(file: Path, number: signal.Signals, cause: str) -> None:
    loaded = OnnxModel.load(file)
    pid = pid_of(loaded)
    os.kill(pid, signal.SIGSTOP)  # it gets a request, and cannot reply

    def kill() -> None:
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)

    ended = threading.Timer(0.3, kill)
    ended.start()
    with pytest.raises(CheckpointError, match=cause) as caught:
        loaded.logits(IMAGES)
    ended.join()
    assert str(file) in str(caught.value)
    assert loaded.logits(IMAGES).shape == (2, 2), "the next request is computed"


def test_the_time_limit_also_ends_code_that_never_returns_to_python() -> None:
    code = (
        "from kdtrain.deploy.onnx import worker as w; w.LONGEST = 1; import re\n"
        "with w._time_limit(): re.match('(a*)*b', 'a' * 40)"
    )
    assert run_python(code).returncode == -signal.SIGALRM


def test_several_threads_get_their_own_logits(file: Path) -> None:
    loaded = OnnxModel.load(file)
    images = [np.full((1, 1, 2, 2), number, np.uint8) for number in range(20)]
    expected = [loaded.logits(image) for image in images]
    with ThreadPoolExecutor(20) as pool:
        computed = [
            [future.result() for future in [pool.submit(loaded.logits, image) for image in images]]
            for _ in range(20)
        ]
    np.testing.assert_array_equal(computed, 20 * [expected])


def test_it_imports_nothing_from_the_working_directory(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file.parent / "onnx.py").write_text("raise SystemExit('run from the folder')")
    monkeypatch.chdir(file.parent)
    assert OnnxModel.load(file).logits(IMAGES).shape == (2, 2)


def test_seconds_are_those_of_each_batch(file: Path) -> None:
    seconds = OnnxModel.load(file).seconds(np.zeros((20, 1, 2, 2), np.uint8), 1)
    assert len(seconds) == 20
    assert all(0 < time < 5 for time in seconds)
