"""The content of an exported file: names, shapes and metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import re
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import kdtrain
from kdtrain import KdtrainError, OnnxModel, flow
from kdtrain.data.dataset import Dataset, Normalization
from kdtrain.deploy.export.onnx_file import Agreement, sha256, to_onnx
from tests.deploy.export.conftest import Exported
from tests.documents import DOCS, blocks, text_of


def test_card_and_origin_come_back(exported: Exported) -> None:
    model, saved = exported.full, exported.saved
    assert model.card == saved.card
    assert model.precision == "float32"
    assert model.parameters == 109_386
    assert model.about["checkpoint_sha256"] == hashlib.sha256(saved.path.read_bytes()).hexdigest()
    file = onnx.load(model.path)
    assert (file.producer_name, file.producer_version) == ("kdtrain", kdtrain.__version__)
    assert [(opset.domain, opset.version) for opset in file.opset_import] == [("", model.about["opset"])]


def test_onnxruntime_alone_maps_pixels_to_logits(exported: Exported, mnist: Dataset) -> None:
    session = onnxruntime.InferenceSession(str(exported.full.path), providers=["CPUExecutionProvider"])
    (source,), (result,) = session.get_inputs(), session.get_outputs()
    assert (source.name, source.type, source.shape) == ("pixels", "tensor(float)", ["N", 1, 28, 28])
    assert (result.name, result.type, result.shape) == ("logits", "tensor(float)", ["N", 10])
    images = mnist.test.images[:5].astype(np.float32)
    (logits,) = session.run(["logits"], {"pixels": images})
    np.testing.assert_array_equal(logits, exported.full.logits(mnist.test.images[:5]))


def test_same_network_gives_the_same_bytes(exported: Exported) -> None:
    saved = exported.saved
    again = to_onnx(saved.build(), saved.card, checkpoint_sha256=sha256(saved.path))
    assert again == exported.full.path.read_bytes()


def test_normalisation_can_be_left_to_the_caller(exported: Exported, mnist: Dataset, tmp_path: Path) -> None:
    path, saved = tmp_path / "inputs.onnx", exported.saved
    path.write_bytes(to_onnx(saved.build(), saved.card, normalized_input=True))
    model, images = OnnxModel.load(path), mnist.test.images[:50]
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert session.get_inputs()[0].name == "inputs"
    normalized = (images / 255 - mnist.normalization.mean[0]) / mnist.normalization.std[0]
    (direct,) = session.run(["logits"], {"inputs": normalized.astype(np.float32)})
    np.testing.assert_allclose(direct, exported.full.logits(images), atol=1e-4)
    np.testing.assert_allclose(model.logits(images), direct, atol=1e-4)


@pytest.mark.parametrize("count", [0, 1, 3, 250, 251, 600])
def test_any_number_of_images(exported: Exported, mnist: Dataset, count: int) -> None:
    logits = exported.full.logits(mnist.test.images[:count])
    assert logits.shape == (count, 10)
    if count:
        inputs = Normalization(mnist.normalization.mean, mnist.normalization.std).apply(
            mnist.test.images[:count]
        )
        with flow.no_grad():
            expected = exported.saved.build()(flow.tensor(inputs)).numpy()
        np.testing.assert_allclose(logits, expected, atol=1e-4)


def test_agreement_counts_and_refuses() -> None:
    logits = np.array([[0.0, 1.0], [2.0, 1.0], [3.0, 3.00001]], np.float32)
    close = logits + np.array([[0, 0], [0, 5e-5], [5e-5, 0]], np.float32)
    agreement = Agreement.between(logits, close)
    assert (agreement.images, agreement.different) == (3, 1)  # 3.00005 is more than 3.00001
    assert agreement.largest == pytest.approx(5e-5, rel=0.01)
    agreement.check()
    with pytest.raises(KdtrainError, match=r"1 of 3 .* 2.0e\+00"):
        Agreement.between(logits, logits + np.array([[2, 0], [0, 0], [0, 0]], np.float32)).check()
    with pytest.raises(KdtrainError, match="nan"):
        Agreement.between(logits, logits * np.float32("nan")).check()


def test_tolerance_grows_with_large_logits() -> None:
    logits = np.array([[1e4, 0.0]], np.float32)
    Agreement.between(logits, logits + np.float32(0.05)).check()
    with pytest.raises(KdtrainError, match=r"2\.0e-01"):
        Agreement.between(logits, logits + np.float32(0.2)).check()


def test_metadata_are_those_of_the_card(exported: Exported) -> None:
    saved = exported.saved
    card = dataclasses.replace(saved.card, metrics={"val/accuracy": 0.5})
    about = onnx.load_model_from_string(to_onnx(saved.build(), card)).metadata_props[0].value
    assert '"metrics": {"val/accuracy": 0.5}' in about


def test_python_of_the_page_works(
    exported: Exported, mnist: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    (block,) = blocks(DOCS / "deployment.md", "python")
    (tmp_path / "logs" / "models").mkdir(parents=True)
    shutil.copy(exported.full.path, tmp_path / "logs" / "models" / "student.onnx")
    monkeypatch.chdir(tmp_path)
    exec(block, {"images": mnist.test.images[:3]})
    best = exported.full.logits(mnist.test.images[:1]).argmax()
    assert capsys.readouterr().out == f"{mnist.classes[best]}\n"


def test_table_of_the_page_is_complete(exported: Exported) -> None:
    rows = re.findall(r"^\| (`\w+`.*?) \|", text_of(DOCS / "deployment.md"), re.MULTILINE)
    keys = {key for row in rows for key in re.findall(r"`(\w+)`", row)}
    assert set(exported.int8.about) <= keys
