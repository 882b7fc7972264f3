"""``kdtrain export``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from kdtrain.cli.common import answer_test_images, open_data, open_model
from kdtrain.cli.flags import check_flags
from kdtrain.cli.output import Output
from kdtrain.data.dataset import Dataset
from kdtrain.deploy.benchmark import Contender, run_benchmark
from kdtrain.deploy.benchmark_table import benchmark_table
from kdtrain.deploy.export.onnx_file import Agreement, sha256, to_onnx
from kdtrain.deploy.export.quantization import draw, quantize
from kdtrain.deploy.onnx_model import OnnxModel
from kdtrain.deploy.onnx_reader import import_onnx
from kdtrain.errors import UsageError
from kdtrain.runtime.files import ensure_writable, temporary_folder, write_bytes
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.runtime.value_checks import IMAGES, SEED
from kdtrain.store.checkpoint import SavedModel

_ROUNDS = 20  # as `kdtrain bench` has them


def run(options: argparse.Namespace) -> int:
    """Writes a checkpoint as an ONNX file, once the file was seen to do the same."""
    check_flags(options, calibration_images=IMAGES, seed=SEED)
    import_onnx()
    path = options.output or options.checkpoint.with_suffix(".onnx")
    if path.suffix != ".onnx":
        raise UsageError(f"--output {path}: the name must end in .onnx.")
    saved = open_model(options.checkpoint, arch=options.arch)
    data = open_data(saved, options.dataset, options.data_dir, skip_corrupt=options.skip_corrupt)
    ensure_writable(path.parent)
    agreement = _write(saved, data, path, normalized_input=options.normalized_input)
    output = Output()
    output.text(f"{path}: {path.stat().st_size:,} bytes")
    output.text(
        f"checked on the {agreement.images:,} test images of {data.name}: {agreement.different} predictions "
        f"differ from oneflow's; the largest difference of a logit is {agreement.largest:.1e}"
    )
    if options.quantize is not None:
        smaller = path.with_suffix(f".{options.quantize}.onnx")
        count = _write_quantized(path, data, smaller, options.calibration_images, options.seed)
        output.text(f"{smaller}: {smaller.stat().st_size:,} bytes, calibrated on {count} training images")
        _compare((path, smaller), data, output)
    return 0


def _write(saved: SavedModel, data: Dataset, path: Path, *, normalized_input: bool) -> Agreement:
    """Writes the file, once onnxruntime has made the same of all test images as oneflow."""
    origin = sha256(saved.path)
    content = to_onnx(saved.build(), saved.card, normalized_input=normalized_input, checkpoint_sha256=origin)
    ours = answer_test_images(saved, data)
    with temporary_folder(path.parent) as folder:
        tried = folder / path.name
        write_bytes(tried, content)
        agreement = Agreement.between(ours, OnnxModel.load(tried).logits(data.test.images))
    agreement.check()
    write_bytes(path, content)
    return agreement


def _write_quantized(path: Path, data: Dataset, smaller: Path, wanted: int, seed: int) -> int:
    """Writes the network in 8 bits; returns how many images it was calibrated on."""
    chosen = draw(wanted, len(data.train), seed)
    with temporary_folder(path.parent) as folder:
        content = quantize(
            OnnxModel.load(path),
            data.train.images[chosen],
            folder,
            calibration_images=len(chosen),
            calibration_seed=seed,
        )
    write_bytes(smaller, content)
    return len(chosen)


def _compare(paths: Sequence[Path], data: Dataset, output: Output) -> None:
    contenders = [Contender(OnnxModel.load(path)) for path in paths]
    batch_size = min(IMAGES_AT_ONCE, len(data.test))
    output.print(benchmark_table(run_benchmark(contenders, data.test, batch_size=batch_size, rounds=_ROUNDS)))
