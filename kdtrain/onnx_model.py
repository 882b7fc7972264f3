"""An ONNX file that kdtrain exported: read with care, and asked through onnxruntime. Needs no oneflow."""

from __future__ import annotations

import importlib
import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.data.arrays import Normalization
from kdtrain.errors import CheckpointError, KdtrainError, one_line
from kdtrain.locations import sought
from kdtrain.store.card import ModelCard, read_card
from kdtrain.store.regular_files import read_bytes

METADATA = "kdtrain"
"""The key under which a file says what it is for: a model's card and more, as JSON."""

PIXELS, INPUTS, LOGITS = "pixels", "inputs", "logits"
"""Names of the graph's input, (N, C, H, W): pixels 0..255, or normalised ones; and of its output."""

PRECISIONS = ("float32", "int8")

_AT_ONCE = 250  # images; bounds the memory that a convolution needs
_LARGEST = 2**31 - 1  # bytes of a protobuf message
_FATAL = 4  # of onnxruntime's severities: all else it says is raised as well


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A network in an ONNX file, ready to be asked; made by ``OnnxModel.load``.

    Attributes:
        path: where it was read from.
        card: what it is for.
        about: all that the file says under ``METADATA``: the card's entries, and ``precision``
            (float32 or int8), ``checkpoint_sha256`` and more.
        session: onnxruntime's ``InferenceSession``.
    """

    path: Path
    card: ModelCard
    about: dict[str, Any]
    session: Any

    @classmethod
    def load(cls, path: Path | str, threads: int = 1) -> OnnxModel:
        """Reads a file.

        Args:
            path: the file.
            threads: how many onnxruntime computes with.

        Raises:
            CheckpointError: it is missing, damaged, not one of kdtrain's, or refers to other files.
            KdtrainError: onnxruntime is not installed.
        """
        path = Path(path)
        onnx, onnxruntime = import_onnx()
        content = _read(path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is then an error as well
                model = onnx.load_model_from_string(content)
        except Exception as error:  # protobuf's and others
            raise CheckpointError(
                f"{path} is not an ONNX file, or it is damaged: {one_line(error)}."
            ) from error
        about = _metadata(model, path)
        card = read_card(about, path)
        if about.get("precision") not in PRECISIONS or type(about.get("parameters")) is not int:
            raise CheckpointError(f"{path} does not say which precision and how many parameters it has.")
        _check_nodes(model, path)
        _check_ends(model, card, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        options.log_severity_level = _FATAL
        try:
            session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a dozen types of its own
            raise CheckpointError(f"{path} cannot be used by onnxruntime: {one_line(error)}.") from error
        return cls(path, card, about, session)

    @property
    def precision(self) -> str:
        """What its weights are: float32 or int8."""
        return str(self.about["precision"])

    @property
    def parameters(self) -> int:
        """How many trainable values the network has."""
        return int(self.about["parameters"])

    def logits(self, images: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
        """Returns logits (N, classes) of images (N, C, H, W): pixels 0..255, of any type.

        Raises:
            CheckpointError: onnxruntime cannot compute them; only a file made by others gets here.
        """
        name = self.session.get_inputs()[0].name
        parts = []
        for start in range(0, max(len(images), 1), _AT_ONCE):
            inputs = images[start : start + _AT_ONCE]
            if name == INPUTS:
                inputs = Normalization(self.card.mean, self.card.std).apply(inputs)
            parts.append(self._run({name: np.ascontiguousarray(inputs, np.float32)}, len(inputs)))
        return np.concatenate(parts)

    def _run(self, feed: dict[str, npt.NDArray[np.float32]], count: int) -> npt.NDArray[np.float32]:
        try:
            logits: npt.NDArray[np.float32] = self.session.run([LOGITS], feed)[0]
        except Exception as error:
            raise CheckpointError(f"{self.path} cannot be computed: {one_line(error)}.") from error
        if logits.shape != (count, len(self.card.classes)):
            raise CheckpointError(
                f"{self.path} answers {count} images with numbers of shape {logits.shape}, "
                f"not {(count, len(self.card.classes))}."
            )
        return logits


def import_onnx() -> tuple[Any, Any]:
    """Returns the modules onnx and onnxruntime.

    Raises:
        KdtrainError: they are not installed; the text says how to.
    """
    try:
        return importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise KdtrainError(
            f"ONNX files need onnx and onnxruntime, which are not installed ({error}): "
            "install them with `pip install 'kdtrain[onnx]'`."
        ) from error


def _read(path: Path) -> bytes:
    try:
        return read_bytes(path, _LARGEST)
    except FileNotFoundError:
        raise CheckpointError(f"there is no model {sought(path)}.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def _metadata(model: Any, path: Path) -> dict[str, Any]:
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA]
    if len(texts) != 1:
        raise CheckpointError(f"{path} is an ONNX file, but not one that kdtrain wrote.")
    try:
        about = json.loads(texts[0])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: what it says about itself is no JSON: {error}.") from error
    return about if isinstance(about, dict) else {}


def _check_nodes(model: Any, path: Path) -> None:
    """Refuses what kdtrain never writes, and what could read other files or never end."""
    nodes = model.graph.node
    attributes = [attribute for node in nodes for attribute in node.attribute]
    tensors = [*model.graph.initializer, *(attribute.t for attribute in attributes)]
    if any(tensor.data_location or tensor.external_data for tensor in tensors):
        raise CheckpointError(f"{path} refers to another file for its weights; kdtrain writes all into one.")
    foreign = {node.op_type for node in nodes if node.domain not in ("", "ai.onnx")}
    foreign |= {node.op_type for node in nodes if any(_has_more(attribute) for attribute in node.attribute)}
    if foreign or model.functions or model.graph.sparse_initializer:
        names = ", ".join(sorted(foreign)) or "functions or sparse tensors"
        raise CheckpointError(f"{path} is not an ONNX file that kdtrain wrote: it has {names!r} in it.")


def _has_more(attribute: Any) -> bool:
    """Returns whether an attribute holds graphs, as loops have, or tensors in unusual places."""
    return bool(
        attribute.HasField("g") or attribute.graphs or attribute.tensors
        or attribute.HasField("sparse_tensor") or attribute.sparse_tensors
    )  # fmt: skip


def _check_ends(model: Any, card: ModelCard, path: Path) -> None:
    """Compares the graph's input and output with the card."""
    weights = {tensor.name for tensor in model.graph.initializer}
    given = [_signature(value) for value in model.graph.input if value.name not in weights]
    returned = [_signature(value) for value in model.graph.output]
    wanted = [(name, True, list(card.image_shape)) for name in (PIXELS, INPUTS)]
    if len(given) != 1 or given[0] not in wanted or returned != [(LOGITS, True, [len(card.classes)])]:
        shape = ", ".join(map(str, card.image_shape))
        raise CheckpointError(
            f"{path} is not an ONNX file that kdtrain wrote: its graph does not lead from {PIXELS} or "
            f"{INPUTS} (float32, N, {shape}) to {LOGITS} (float32, N, {len(card.classes)})."
        )


def _signature(value: Any) -> tuple[str, bool, list[int]]:
    """Returns a value's name, whether it is float32 with any number of images, and the rest of its shape."""
    tensor = value.type.tensor_type
    first, *rest = tensor.shape.dim or [None]
    any_number = first is not None and bool(first.dim_param)
    return value.name, any_number and tensor.elem_type == 1, [dimension.dim_value for dimension in rest]
