"""The command ``kdtrain export``: a checkpoint as an ONNX file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from kdtrain.cli.next_step import command_line, print_next
from kdtrain.cli.output import Output
from kdtrain.deploy.benchmark import ROUNDS, BenchmarkResult, benchmark_json, benchmark_table, run_benchmark
from kdtrain.deploy.export_model import ExportedModel, export
from kdtrain.deploy.onnx.process import OnnxModel
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
    results = _compare(exported)
    if options.json:
        print(json.dumps(_to_json(exported, results, options), indent=2))
    else:
        _print(exported, results)
        if not options.normalized_input:  # serve takes pixels
            print_next(Output(), command_line("serve", str(exported.path)))
    return 0


def _compare(exported: ExportedModel) -> list[BenchmarkResult]:
    """Returns the figures of both files; none without a file in 8-bit integers."""
    if exported.quantized is None:
        return []
    models = [OnnxModel.load(exported.path), OnnxModel.load(exported.quantized)]
    test = exported.dataset.test
    return run_benchmark(models, test, batch_size=min(IMAGES_AT_ONCE, len(test)), rounds=ROUNDS)


def _print(exported: ExportedModel, results: Sequence[BenchmarkResult]) -> None:
    path, agreement = exported.path, exported.agreement
    output = Output()
    output.text(f"{path}: {path.stat().st_size:,} bytes")
    output.text(
        f"checked on the {agreement.images:,} test images of {exported.dataset.name}: "
        f"{agreement.different} predictions differ from oneflow's; the largest difference of a logit is "
        f"{agreement.largest:.1e}"
    )
    if (quantized := exported.quantized) is not None:
        images = f"{exported.calibration_images} training images"
        output.text(f"{quantized}: {quantized.stat().st_size:,} bytes, calibrated on {images}")
        output.print(benchmark_table(results))


def _to_json(
    exported: ExportedModel, results: Sequence[BenchmarkResult], options: argparse.Namespace
) -> dict[str, Any]:
    """Returns plain values for ``--json``; docs/deployment.md explains them."""
    path, quantized, agreement = exported.path, exported.quantized, exported.agreement
    return {
        "checkpoint": str(options.checkpoint),
        "file": str(path),
        "size_bytes": path.stat().st_size,
        "dataset": exported.dataset.name,
        "test_images": agreement.images,
        "different_predictions": agreement.different,
        "largest_logit_difference": agreement.largest,
        "allowed_logit_difference": agreement.tolerance,
        "quantized": quantized
        and {
            "file": str(quantized),
            "size_bytes": quantized.stat().st_size,
            "calibration_images": exported.calibration_images,
        },
        "benchmark": [benchmark_json(result) for result in results],
    }
