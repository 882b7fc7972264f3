"""A briefly trained student as a checkpoint and as ONNX files."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from kdtrain import OnnxModel, Trainer, build_model, flow, load_model, model_card
from kdtrain.data.dataset import Dataset
from kdtrain.deploy.export.onnx_file import sha256, to_onnx
from kdtrain.deploy.export.quantization import draw, quantize
from kdtrain.store.checkpoint import SavedModel, save_model, snapshot
from tests.conftest import ADAM, LoaderFactory


@dataclass(frozen=True)
class Exported:
    """The same network in three files."""

    saved: SavedModel
    full: OnnxModel
    int8: OnnxModel


@pytest.fixture(scope="session")
def exported(
    tmp_path_factory: pytest.TempPathFactory, mnist: Dataset, make_loader: LoaderFactory
) -> Exported:
    folder = tmp_path_factory.mktemp("exported")
    flow.manual_seed(0)
    student = build_model("student_mlp", mnist.image_shape, mnist.num_classes)
    Trainer(student, ADAM, []).fit(
        make_loader(3000), make_loader(256, start=3000, seed=None), epochs=2, directory=folder
    )
    path = folder / "student.safetensors"
    save_model(path, snapshot(student), model_card("student", "student_mlp", mnist))
    saved = load_model(path)
    full = folder / "student.onnx"
    full.write_bytes(to_onnx(saved.build(), saved.card, checkpoint_sha256=sha256(path)))
    model = OnnxModel.load(full)
    smaller = folder / "student.int8.onnx"
    images = mnist.train.images[draw(128, len(mnist.train), seed=0)]
    smaller.write_bytes(quantize(model, images, folder, calibration_images=128, calibration_seed=0))
    return Exported(saved, model, OnnxModel.load(smaller))
