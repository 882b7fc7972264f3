"""The command ``kdtrain export``: a checkpoint as an ONNX file."""

from __future__ import annotations

import argparse

from kdtrain.cli.output import Output
from kdtrain.deploy.benchmark import ROUNDS, run_benchmark
from kdtrain.deploy.benchmark_table import benchmark_table
from kdtrain.deploy.export_model import export
from kdtrain.deploy.onnx_model import OnnxModel
from kdtrain.runtime.limits import IMAGES_AT_ONCE


def run(options: argparse.Namespace) -> int:
    """Writes a checkpoint as an ONNX file, after checking that onnxruntime computes the same logits."""
    exported = export(
        options.checkpoint,
        options.output,
        quantize=options.quantize,
        calibration_images=options.calibration_images,
        seed=options.seed,
        normalized_input=options.normalized_input,
        arch=options.arch,
        dataset=options.dataset,
        data_dir=options.data_dir,
        skip_corrupt=options.skip_corrupt,
    )
    path, agreement, data = exported.path, exported.agreement, exported.dataset
    output = Output()
    output.text(f"{path}: {path.stat().st_size:,} bytes")
    output.text(
        f"checked on the {agreement.images:,} test images of {data.name}: {agreement.different} predictions "
        f"differ from oneflow's; the largest difference of a logit is {agreement.largest:.1e}"
    )
    if (quantized := exported.quantized) is not None:
        images = f"{exported.calibration_images} training images"
        output.text(f"{quantized}: {quantized.stat().st_size:,} bytes, calibrated on {images}")
        models = [OnnxModel.load(path), OnnxModel.load(quantized)]
        batch_size = min(IMAGES_AT_ONCE, len(data.test))
        results = run_benchmark(models, data.test, batch_size=batch_size, rounds=ROUNDS)
        output.print(benchmark_table(results))
    return 0
