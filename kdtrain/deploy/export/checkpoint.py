"""The export of a checkpoint to ONNX files, checked on the whole test set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from kdtrain.data.dataset import Dataset
from kdtrain.deploy.export.onnx_file import Agreement, sha256, to_onnx
from kdtrain.deploy.export.quantization import draw
from kdtrain.deploy.export.quantization import quantize as to_int8
from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.deploy.onnx.reader import import_onnx
from kdtrain.deploy.predict.evaluate import predict_test_set
from kdtrain.deploy.predict.opening import open_checkpoint, open_data
from kdtrain.deploy.predict.predictor import OneFlowModel
from kdtrain.errors import UsageError, unknown_name_message
from kdtrain.runtime.files import ensure_writable, temporary_folder, write_bytes
from kdtrain.runtime.value_checks import IMAGES, SEED, check_value

QUANTIZATIONS = ("int8",)
"""The values of ``--quantize``."""


@dataclass(frozen=True, eq=False, repr=False)
class ExportedModel:
    """The files of an export.

    Attributes:
        path: the file in float32.
        agreement: how far its logits of the test images are from OneFlow's.
        dataset: the data of these images.
        quantized: the file in 8-bit integers; None without one.
        calibration_images: number of training images that it was calibrated on.
    """

    path: Path
    agreement: Agreement
    dataset: Dataset
    quantized: Path | None = None
    calibration_images: int = 0

    def __repr__(self) -> str:
        files = [path for path in (self.path, self.quantized) if path is not None]
        return f"<ExportedModel {', '.join(f'{path} ({path.stat().st_size:,} bytes)' for path in files)}>"


def export(
    checkpoint: Path | str,
    output: Path | str | None = None,
    *,
    quantize: str | None = None,
    calibration_images: int = 512,
    seed: int = 0,
    normalized_input: bool = False,
    arch: str | None = None,
    dataset: str | None = None,
    data_dir: Path | str | None = None,
    skip_corrupt: bool = False,
) -> ExportedModel:
    """Writes a checkpoint as an ONNX file, as ``kdtrain export`` does.

    The file gets its name only after onnxruntime has computed OneFlow's logits for every test image.

    Args:
        checkpoint: a .safetensors file, or a OneFlow checkpoint directory.
        output: the file to write; by default the checkpoint's name with the ending .onnx.
        quantize: int8 also writes OUTPUT.int8.onnx, in 8-bit integers.
        calibration_images: number of training images that ``quantize`` calibrates with.
        seed: seed of the choice of these images.
        normalized_input: leave the normalisation out of the file: its input is then normalised images.
        arch: the architecture that the model must have; code of the user's runs only if this names it.
        dataset: the data set; by default the one that the model was trained on, if it is built in.
        data_dir: a folder to read in place of built-in or downloaded files.
        skip_corrupt: leave out image files that cannot be read.

    Raises:
        KdtrainError: the model or the data cannot be read, the network cannot be translated, or
            onnxruntime computes other logits.
    """
    check_value("--calibration-images", calibration_images, IMAGES)
    check_value("--seed", seed, SEED)
    if quantize is not None and quantize not in QUANTIZATIONS:
        raise UsageError(f"--quantize: {unknown_name_message('precision', str(quantize), QUANTIZATIONS)}")
    import_onnx()
    path = Path(checkpoint).with_suffix(".onnx") if output is None else Path(output)
    if path.suffix != ".onnx":
        raise UsageError(f"--output {path}: the name must end in .onnx.")
    model = open_checkpoint(Path(checkpoint), arch)
    folder = None if data_dir is None else Path(data_dir)
    data = open_data(model, dataset, folder, skip_corrupt=skip_corrupt)
    ensure_writable(path.parent)
    agreement = _write(model, data, path, normalized_input=normalized_input)
    if quantize is None:
        return ExportedModel(path, agreement, data)
    quantized = path.with_suffix(f".{quantize}.onnx")
    count = _write_quantized(path, data, quantized, calibration_images, seed)
    return ExportedModel(path, agreement, data, quantized, count)


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
        content = to_int8(
            OnnxModel.load(path),
            data.train.images[indices],
            folder,
            calibration_images=len(indices),
            calibration_seed=seed,
        )
    write_bytes(quantized, content)
    return len(indices)
