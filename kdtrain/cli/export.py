"""The command ``kdtrain export``: a checkpoint as an ONNX file."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtrain.cli.flags import choice, data_flags, json_flag, whole_number
from kdtrain.cli.output import Stdout, command_line, print_next
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.runtime.signals import defer_signals

if TYPE_CHECKING:  # the help needs this file, but no OneFlow
    from kdtrain.deploy.benchmark import BenchmarkResult
    from kdtrain.deploy.export.checkpoint import ExportedModel


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of the command."""
    parser.description = (
        "Write a checkpoint as an ONNX file that runs without oneflow. Before the file gets its name, "
        "onnxruntime must give oneflow's predictions for every test image. The file's input `pixels` takes "
        "images with values from 0 to 255."
    )
    parser.add_argument(
        "checkpoint",
        type=Path,
        metavar="CHECKPOINT",
        help="a .safetensors file, or a OneFlow checkpoint directory",
    )
    text = "file to write [CHECKPOINT with the ending .onnx]"
    parser.add_argument("--output", type=Path, metavar="FILE", help=text)
    parser.add_argument(
        "--normalized-input",
        action="store_true",
        help="leave the normalisation out of the file: its input is then called `inputs`, and takes "
        "normalised images",
    )
    parser.add_argument(
        "--quantize",
        **choice("int8"),
        help="also write FILE.int8.onnx, in 8-bit integers, calibrated on training images [not written]",
    )
    parser.add_argument(
        "--calibration-images",
        type=whole_number,
        default=512,
        metavar="N",
        help="number of training images that --quantize calibrates with [512]",
    )
    parser.add_argument(
        "--seed",
        type=whole_number,
        default=0,
        metavar="N",
        help="seed of the choice of calibration images [0]",
    )
    data_flags(parser)
    json_flag(parser, "one JSON object")


def run(options: argparse.Namespace) -> int:
    """Writes a checkpoint as an ONNX file, after checking that onnxruntime computes the same logits."""
    with defer_signals():  # an interrupted import may come out as another error
        from kdtrain.deploy.export.checkpoint import export
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
            print_next(Stdout(), command_line("serve", str(exported.path)))
    return 0


def _compare(exported: ExportedModel) -> list[BenchmarkResult]:
    """Returns the figures of both files; none without a file in 8-bit integers."""
    if exported.quantized is None:
        return []
    from kdtrain.deploy.benchmark import ROUNDS, run_benchmark
    from kdtrain.deploy.onnx.process import OnnxModel

    models = [OnnxModel.load(exported.path), OnnxModel.load(exported.quantized)]
    test = exported.dataset.test
    return run_benchmark(models, test, batch_size=min(IMAGES_AT_ONCE, len(test)), rounds=ROUNDS)


def _print(exported: ExportedModel, results: Sequence[BenchmarkResult]) -> None:
    from kdtrain.deploy.benchmark import benchmark_table

    path, agreement = exported.path, exported.agreement
    output = Stdout()
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
    from kdtrain.deploy.benchmark import benchmark_json

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
