"""``kdtrain export``."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdtrain.cli.common import open_data, open_model
from kdtrain.cli.output import Output
from kdtrain.data.datasets import Dataset, Normalization
from kdtrain.data.loader import Loader
from kdtrain.errors import UsageError
from kdtrain.export.onnx_file import Agreement, sha256, to_onnx
from kdtrain.onnx_model import OnnxModel, import_onnx
from kdtrain.predict import predict_logits
from kdtrain.runtime import flow
from kdtrain.store.atomic import make_folder, temporary_folder, write_bytes
from kdtrain.store.checkpoint import SavedModel


def run(options: argparse.Namespace) -> int:
    """Writes a checkpoint as an ONNX file, once the file was seen to do the same."""
    import_onnx()
    output = options.output or options.checkpoint.with_suffix(".onnx")
    if output.suffix != ".onnx":
        raise UsageError(f"--output {output}: the name must end in .onnx.")
    saved = open_model(options.checkpoint, arch=options.arch)
    data = open_data(saved, options.dataset, options.data_dir, skip_corrupt=options.skip_corrupt)
    make_folder(output.parent)
    model = saved.build()
    origin = sha256(saved.path)
    content = to_onnx(model, saved.card, normalized_input=options.normalized_input, checkpoint_sha256=origin)
    ours = _oneflow_logits(model, saved, data)
    with temporary_folder(output.parent) as folder:
        tried = folder / output.name
        write_bytes(tried, content)
        agreement = Agreement.between(ours, OnnxModel.load(tried).logits(data.test.images))
    agreement.check()
    write_bytes(output, content)
    _print(output, agreement, data)
    return 0


def _oneflow_logits(model: flow.nn.Module, saved: SavedModel, data: Dataset) -> npt.NDArray[np.float32]:
    """Returns what oneflow makes of the test images."""
    inputs = data.test.normalized(Normalization(saved.card.mean, saved.card.std))
    test = Loader(inputs, data.test.labels, 250, num_classes=data.num_classes)
    return predict_logits(model, test, description="test set")


def _print(output: Path, agreement: Agreement, data: Dataset) -> None:
    out = Output()
    out.text(f"{output}: {output.stat().st_size:,} bytes")
    out.text(
        f"checked on the {agreement.images:,} test images of {data.name}: {agreement.different} predictions "
        f"differ from oneflow's; the largest difference of a logit is {agreement.largest:.1e}"
    )
