"""Makes the weights and activations of an exported network 8-bit integers."""

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
from kdtrain.deploy.onnx_model import OnnxModel
from kdtrain.deploy.onnx_reader import INPUTS, LOGITS, import_onnx
from kdtrain.errors import KdtrainError

_AT_ONCE = 32
_OPERATIONS = ["Conv", "Gemm", "MatMul", "Relu", "Clip", "MaxPool", "AveragePool", "GlobalAveragePool", "Add",
               "Concat", "Reshape", "Transpose", "Slice"]  # fmt: skip
"""What computes in 8 bits. The rest, the normalisation of the pixels first of all, stays float32."""


def draw(count: int, among: int, seed: int) -> npt.NDArray[np.int64]:
    """Returns which training images calibrate: sorted positions, none twice, the same for the same seed."""
    chosen = np.random.default_rng(seed).choice(among, size=min(count, among), replace=False)
    return np.sort(chosen).astype(np.int64)


def quantize(model: OnnxModel, images: npt.NDArray[np.uint8], folder: Path, **provenance: Any) -> bytes:
    """Returns an ONNX file with the same network in 8-bit integers (QDQ format).

    Weights get a scale for each output channel, and 7 of the 8 bits: on processors without VNNI, sums
    of two products of 8-bit numbers would overflow 16 bits. Activations get a scale and a zero point
    each, from the values that they take on ``images``.

    Args:
        model: the network in float32.
        images: uint8 (N, C, H, W) to calibrate with.
        folder: for files that are made on the way.
        provenance: more to say in the file.

    Raises:
        KdtrainError: onnxruntime's tools cannot do it.
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
    except Exception as error:  # of any type: they raise what they please
        raise KdtrainError(f"{model.path} cannot be quantised: {error}.") from error
    graph = onnx.load(str(result)).graph
    _leave_logits(graph)
    return finish(onnx, graph, model.about | {"precision": "int8"} | provenance)


def _batches(tools: Any, model: OnnxModel, images: npt.NDArray[np.uint8], name: str) -> Any:
    """Returns what hands images out to the input of this name, some at a time."""
    normalization = Normalization(model.card.mean, model.card.std)

    class Reader(tools.CalibrationDataReader):
        def __init__(self) -> None:
            self.starts = iter(range(0, len(images), _AT_ONCE))

        def get_next(self) -> dict[str, npt.NDArray[np.float32]] | None:
            start = next(self.starts, None)
            if start is None:
                return None
            batch = images[start : start + _AT_ONCE]
            return {name: normalization.apply(batch) if name == INPUTS else batch.astype(np.float32)}

    return Reader()


def _leave_logits(graph: Any) -> None:
    """Takes the rounding to 8 bits off the logits: two of them would too often be equal."""
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
    """Keeps away what the tools log; what goes wrong is raised as well."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)
