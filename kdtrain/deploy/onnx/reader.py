"""The reader of ONNX files: it checks a file before anything in it is computed. Used in the worker only."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from kdtrain.deploy.onnx.cost import Cost, GraphError, graph_cost, reason
from kdtrain.errors import CheckpointError, KdtrainError
from kdtrain.runtime.locations import missing_path_text
from kdtrain.runtime.regular_files import read_bytes
from kdtrain.store.card import ModelCard, read_card

METADATA = "kdtrain"
"""Key of a file's metadata: the model's card and more, as JSON."""

PIXELS, INPUTS, LOGITS = "pixels", "inputs", "logits"
"""Names of the graph's input and output.

The input is (N, C, H, W) float32: ``pixels`` 0..255, or ``inputs``, which are normalised. The output is
(N, classes) float32 logits.
"""

PRECISIONS = ("float32", "int8")

LARGEST = 2**31 - 1
"""Limit in bytes of a protobuf message."""

_LONGEST_METADATA = 2 << 20  # characters; holds 10,000 classes with long names


@dataclass(frozen=True)
class OnnxFile:
    """An ONNX file that has passed all checks.

    Attributes:
        content: its bytes.
        about: its metadata: the card's entries, and ``precision`` (float32 or int8),
            ``checkpoint_sha256`` and more.
        card: the network's images, classes and normalisation.
        images: the name of its input.
        cost: memory and work for one image.
    """

    content: bytes
    about: dict[str, Any]
    card: ModelCard
    images: str
    cost: Cost


def read_onnx(path: Path) -> OnnxFile:
    """Reads a file.

    Raises:
        CheckpointError: it is missing, damaged or not one of kdtrain's, refers to other files, or needs
            more memory or time than the limits.
        KdtrainError: onnx is not installed.
    """
    content = read_content(path)
    onnx = import_onnx()[0]
    model = parse_model(onnx, content, path)
    about = read_metadata(model, path)
    card = read_card(about, path)
    if about.get("precision") not in PRECISIONS or type(about.get("parameters")) is not int:
        raise CheckpointError(f"{path}: its metadata lacks a valid precision or number of parameters.")
    images = _check_ends(model, card, path)
    try:
        cost = graph_cost(onnx, model, images)
    except GraphError as error:
        raise CheckpointError(f"{path} {error}.") from error
    return OnnxFile(content, about, card, images, cost)


def parse_model(onnx: Any, content: bytes, path: Path) -> Any:
    """Returns the ``ModelProto`` in a file's bytes; raises CheckpointError if there is none."""
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf and onnx raise several types
        raise CheckpointError(f"{path} is not an ONNX file, or it is damaged: {reason(error)}.") from error


def import_onnx() -> tuple[Any, Any]:
    """Returns the modules onnx and onnxruntime.

    Raises:
        KdtrainError: they are not installed; the text names the command that installs them.
    """
    try:
        return importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise KdtrainError(
            f"ONNX files need onnx and onnxruntime, which are not installed ({error}): "
            "install them with `pip install 'kdtrain[onnx]'`."
        ) from error


def read_content(path: Path) -> bytes:
    """Returns a file's bytes; raises CheckpointError if it cannot be read, or is too large."""
    try:
        return read_bytes(path, LARGEST)
    except FileNotFoundError:
        raise CheckpointError(f"there is no model {missing_path_text(path)}.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def read_metadata(model: Any, path: Path) -> dict[str, Any]:
    """Returns what kdtrain has noted in a file; raises CheckpointError if kdtrain did not write it."""
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA]
    if len(texts) != 1 or len(texts[0]) > _LONGEST_METADATA:
        raise CheckpointError(f"{path} is an ONNX file, but not one that kdtrain wrote.")
    try:
        about = json.loads(texts[0])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its metadata are not JSON: {error}.") from error
    return about if isinstance(about, dict) else {}


def _check_ends(model: Any, card: ModelCard, path: Path) -> str:
    """Checks the graph's input and output against the card; returns the input's name."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [_signature(value) for value in model.graph.input if value.name not in weights]
    outputs = [_signature(value) for value in model.graph.output]
    expected = [(name, True, list(card.image_shape)) for name in (PIXELS, INPUTS)]
    if len(inputs) != 1 or inputs[0] not in expected or outputs != [(LOGITS, True, [len(card.classes)])]:
        shape = ", ".join(map(str, card.image_shape))
        raise CheckpointError(
            f"{path} is not an ONNX file that kdtrain wrote: its graph does not lead from {PIXELS} or "
            f"{INPUTS} (float32, N, {shape}) to {LOGITS} (float32, N, {len(card.classes)})."
        )
    return inputs[0][0]


def _signature(value: Any) -> tuple[str, bool, list[int]]:
    """Returns a value's name, whether it is float32 with a symbolic batch size, and the rest of its shape."""
    tensor = value.type.tensor_type
    first, *rest = tensor.shape.dim or [None]
    any_number = first is not None and bool(first.dim_param)
    return value.name, any_number and tensor.elem_type == 1, [dimension.dim_value for dimension in rest]
