"""The content of an exported ONNX file, and the comparison of its logits with the network's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain._version import __version__
from kdtrain.deploy.export import layers, numbers, shapes
from kdtrain.deploy.export.graph import GraphBuilder
from kdtrain.deploy.export.trace import Operation, Trace, trace
from kdtrain.deploy.onnx.reader import INPUTS, LOGITS, METADATA, PIXELS, import_onnx
from kdtrain.errors import KdtrainError, one_line
from kdtrain.models.registry import count_parameters
from kdtrain.runtime import flow
from kdtrain.runtime.regular_files import open_regular
from kdtrain.store.card import ModelCard

_IR_VERSION = 8  # the version of opset 17; older onnxruntimes cannot read a newer one
_TOLERANCE = 1e-4  # absolute, of a logit: float32 sums in another order differ by 1e-6 to 1e-5
_RELATIVE_TOLERANCE = 1e-5  # of the largest logit, for logits far larger than a trained network's
_IMAGES = "N"  # name of the batch dimension


@dataclass(frozen=True)
class Agreement:
    """The differences between two sets of logits for the same images.

    Attributes:
        images: number of images.
        different: number of images with different predictions.
        largest: the largest absolute difference of a logit.
        tolerance: the allowed difference of a logit.
    """

    images: int
    different: int
    largest: float
    tolerance: float

    @classmethod
    def between(cls, reference: npt.NDArray[np.float32], exported: npt.NDArray[np.float32]) -> Agreement:
        """Compares the network's logits with those of the exported file, both (images, classes) float32."""
        different = int((reference.argmax(axis=1) != exported.argmax(axis=1)).sum())
        largest = float(np.abs(reference.astype(np.float64) - exported).max())
        tolerance = max(_TOLERANCE, _RELATIVE_TOLERANCE * float(np.abs(reference).max()))
        return cls(len(reference), different, largest, tolerance)

    def check(self) -> None:
        """Raises KdtrainError if a logit differs by more than the tolerance.

        Predictions may differ within it, where an image's two best logits are that close.
        """
        if not self.largest <= self.tolerance:  # NaN included
            raise KdtrainError(
                "the exported network computes other logits, and was not written: "
                f"{self.different} of {self.images:,} predictions differ, and logits by up to "
                f"{self.largest:.1e} ({self.tolerance:.0e} is allowed)."
            )


def to_onnx(
    model: flow.nn.Module, card: ModelCard, *, normalized_input: bool = False, **provenance: Any
) -> bytes:
    """Returns the content of a network's ONNX file; the same network gives the same bytes.

    Args:
        model: the network, in evaluation mode, on the CPU.
        card: its card.
        normalized_input: leave the normalisation out of the graph; the input is then normalised images.
        provenance: further entries of the file's metadata.

    Raises:
        KdtrainError: the network cannot be traced, or has an operation without a translation.
    """
    onnx = import_onnx()[0]
    traced = trace(model, card.image_shape)
    graph = _graph(traced, card, INPUTS if normalized_input else PIXELS)
    about = dataclasses.asdict(card) | provenance
    about |= {"precision": "float32", "parameters": count_parameters(model), "opset": OPSET}
    return finish(onnx, graph, about)


def finish(onnx: Any, graph: Any, about: dict[str, Any]) -> bytes:
    """Returns the content of a graph's file, with metadata ``about``.

    Raises:
        KdtrainError: onnx's checker finds the graph invalid.
    """
    file = onnx.helper.make_model(
        graph,
        producer_name="kdtrain",
        producer_version=__version__,
        ir_version=_IR_VERSION,
        opset_imports=[onnx.helper.make_opsetid("", OPSET)],
    )
    onnx.helper.set_model_props(file, {METADATA: json.dumps(about, sort_keys=True)})
    try:
        onnx.checker.check_model(file, full_check=True)
    except Exception as error:  # onnx raises several types
        raise KdtrainError(
            f"the network cannot be exported: onnx finds its graph invalid: {one_line(error)}."
        ) from error
    content: bytes = file.SerializeToString(deterministic=True)
    return content


def sha256(path: Path) -> str | None:
    """Returns the SHA-256 of a checkpoint in hex; None for a OneFlow directory, which has many files."""
    if path.is_dir():
        return None
    with open_regular(path) as file:
        return hashlib.sha256(file.read()).hexdigest()


def _graph(traced: Trace, card: ModelCard, images: str) -> Any:
    onnx = import_onnx()[0]
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    graph = GraphBuilder(traced, images)
    if images == PIXELS:
        graph.normalize(card.mean, card.std)
    for operation in traced.operations:
        translate(operation, graph)
    graph.finish(LOGITS)
    return helper.make_graph(
        graph.nodes,
        card.arch,
        [helper.make_tensor_value_info(images, kind, [_IMAGES, *card.image_shape])],
        [helper.make_tensor_value_info(LOGITS, kind, [_IMAGES, len(card.classes)])],
        [onnx.numpy_helper.from_array(array, name) for name, array in graph.constants.items()],
    )


OPSET = 17
"""Version of ONNX's operators in exported files; onnxruntime supports it since 1.12 (2022)."""

_TRANSLATIONS = layers.TRANSLATIONS | shapes.TRANSLATIONS | numbers.TRANSLATIONS


def translate(operation: Operation, graph: GraphBuilder) -> None:
    """Adds an operation to a graph.

    Raises:
        KdtrainError: it has no translation; the text names it.
    """
    translation = _TRANSLATIONS.get(operation.kind)
    if translation is None:
        raise operation.refused("has no translation to ONNX")
    graph.begin(operation)
    graph.end(operation, translation(operation, graph))
