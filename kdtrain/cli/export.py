"""The command ``kdtrain export``: a checkpoint as an ONNX file."""

from __future__ import annotations

import argparse
from pathlib import Path

from kdtrain.cli.common import open_checkpoint, open_data, predict_test_set
from kdtrain.cli.flags import check_flags
from kdtrain.cli.output import Output
from kdtrain.data.dataset import Dataset
from kdtrain.deploy.benchmark import run_benchmark
from kdtrain.deploy.benchmark_table import benchmark_table
from kdtrain.deploy.export.onnx_file import Agreement, sha256, to_onnx
from kdtrain.deploy.export.quantization import draw, quantize
from kdtrain.deploy.oneflow_model import OneFlowModel
from kdtrain.deploy.onnx_model import OnnxModel
from kdtrain.deploy.onnx_reader import import_onnx
from kdtrain.errors import UsageError
from kdtrain.runtime.files import ensure_writable, temporary_folder, write_bytes
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.runtime.value_checks import IMAGES, SEED

_ROUNDS = 20  # the default of `kdtrain bench`


def run(options: argparse.Namespace) -> int:
    """Writes a checkpoint as an ONNX file, after checking that onnxruntime computes the same logits."""
    check_flags(options, calibration_images=IMAGES, seed=SEED)
    import_onnx()
    path = options.output or options.checkpoint.with_suffix(".onnx")
    if path.suffix != ".onnx":
        raise UsageError(f"--output {path}: the name must end in .onnx.")
    model = open_checkpoint(options.checkpoint, options.arch)
    data = open_data(model, options.dataset, options.data_dir, skip_corrupt=options.skip_corrupt)
    ensure_writable(path.parent)
    agreement = _write(model, data, path, normalized_input=options.normalized_input)
    output = Output()
    output.text(f"{path}: {path.stat().st_size:,} bytes")
    output.text(
        f"checked on the {agreement.images:,} test images of {data.name}: {agreement.different} predictions "
        f"differ from oneflow's; the largest difference of a logit is {agreement.largest:.1e}"
    )
    if options.quantize is not None:
        quantized = path.with_suffix(f".{options.quantize}.onnx")
        count = _write_quantized(path, data, quantized, options.calibration_images, options.seed)
        output.text(f"{quantized}: {quantized.stat().st_size:,} bytes, calibrated on {count} training images")
        models = [OnnxModel.load(path), OnnxModel.load(quantized)]
        batch_size = min(IMAGES_AT_ONCE, len(data.test))
        results = run_benchmark(models, data.test, batch_size=batch_size, rounds=_ROUNDS)
        output.print(benchmark_table(results))
    return 0


def _write(model: OneFlowModel, data: Dataset, path: Path, *, normalized_input: bool) -> Agreement:
    """Writes the file if onnxruntime's logits of all test images agree with oneflow's."""
    content = to_onnx(
        model.network, model.card, normalized_input=normalized_input, checkpoint_sha256=sha256(model.path)
    )
    oneflow_logits = predict_test_set(model, data)
    with temporary_folder(path.parent) as folder:
        candidate = folder / path.name
        write_bytes(candidate, content)
        onnx_logits = OnnxModel.load(candidate).logits(data.test.images)
    agreement = Agreement.between(oneflow_logits, onnx_logits)
    agreement.check()
    write_bytes(path, content)
    return agreement


def _write_quantized(path: Path, data: Dataset, quantized: Path, count: int, seed: int) -> int:
    """Writes the network in 8-bit integers; returns the number of calibration images."""
    indices = draw(count, len(data.train), seed)
    with temporary_folder(path.parent) as folder:
        content = quantize(
            OnnxModel.load(path),
            data.train.images[indices],
            folder,
            calibration_images=len(indices),
            calibration_seed=seed,
        )
    write_bytes(quantized, content)
    return len(indices)
