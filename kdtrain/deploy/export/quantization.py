"""Quantisation of an exported network: weights and activations as 8-bit integers."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Normalization
from kdtrain.deploy.export.onnx_file import finish
from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.deploy.onnx.reader import INPUTS, LOGITS, import_onnx
from kdtrain.errors import KdtrainError, one_line

_BATCH_SIZE = 32
_OPERATIONS = ["Conv", "Gemm", "MatMul", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Add",
               "Concat", "Reshape", "Transpose", "Slice"]  # fmt: skip
"""Operators that are computed in 8 bits. Others stay float32, such as the normalisation of the pixels."""


def draw(count: int, among: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns positions of calibration images, (min(count, among),) int64, sorted, without repetition.

    Args:
        count: number of images.
        among: number of training images.
        seed: the same seed gives the same positions.
    """
    positions = np.random.default_rng(seed).choice(among, size=min(count, among), replace=False)
    return np.sort(positions).astype(np.int64)


def quantize(model: OnnxModel, images: npt.NDArray[np.uint8], folder: Path, **provenance: Any) -> bytes:
    """Returns the content of an ONNX file with the same network in 8-bit integers (QDQ format).

    Weights have a scale for each output channel, and use 7 of the 8 bits: on processors without VNNI, sums
    of two products of 8-bit numbers would overflow 16 bits. Activations have a scale and a zero point each,
    from their range on ``images``.

    Args:
        model: the network in float32.
        images: (N, C, H, W) uint8, pixels 0..255, for calibration.
        folder: a folder for intermediate files.
        provenance: further entries of the file's metadata.

    Raises:
        KdtrainError: onnxruntime's tools fail.
    """
    onnx = import_onnx()[0]
    tools = importlib.import_module("onnxruntime.quantization")
    shapes = importlib.import_module("onnxruntime.quantization.shape_inference")
    prepared, result = folder / "prepared.onnx", folder / "quantized.onnx"
    try:
        with _quiet():
            shapes.quant_pre_process(str(model.path), str(prepared), skip_symbolic_shape=True)
            tools.quantize_static(
                str(prepared),
                str(result),
                _batches(tools, model, images, onnx.load(str(prepared)).graph.input[0].name),
                quant_format=tools.QuantFormat.QDQ,
                op_types_to_quantize=_OPERATIONS,
                per_channel=True,
                reduce_range=True,
                activation_type=tools.QuantType.QUInt8,
                weight_type=tools.QuantType.QInt8,
                calibrate_method=tools.CalibrationMethod.MinMax,
            )
    except Exception as error:  # the tools raise several types
        raise KdtrainError(f"{model.path} cannot be quantised: {one_line(error)}.") from error
    graph = onnx.load(str(result)).graph
    _keep_float_logits(graph)
    return finish(onnx, graph, model.about | {"precision": "int8"} | provenance)


def _batches(tools: Any, model: OnnxModel, images: npt.NDArray[np.uint8], name: str) -> Any:
    """Returns onnxruntime's reader of calibration data: batches of images for the input called ``name``."""
    normalization = Normalization(model.card.mean, model.card.std)

    class Reader(tools.CalibrationDataReader):
        def __init__(self) -> None:
            self.starts = iter(range(0, len(images), _BATCH_SIZE))

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            start = next(self.starts, None)
            if start is None:
                return None
            batch = images[start : start + _BATCH_SIZE]
            return {name: normalization.apply(batch) if name == INPUTS else batch.astype(np.float32)}

    return Reader()


def _keep_float_logits(graph: Any) -> None:
    """Removes the quantisation of the logits: rounded to 8 bits, two of them are often equal."""
    producers = {name: node for node in graph.node for name in node.output}
    dequantize = producers[LOGITS]
    if dequantize.op_type == "DequantizeLinear":
        quantize = producers[dequantize.input[0]]
        producers[quantize.input[0]].output[0] = LOGITS
        graph.node.remove(dequantize)
        graph.node.remove(quantize)
        used = {name for node in graph.node for name in node.input}
        for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
            graph.initializer.remove(tensor)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the tools' log records; they raise their errors as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
