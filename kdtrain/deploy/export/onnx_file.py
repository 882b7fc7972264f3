"""Writes a network as an ONNX file, and compares the two."""

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
from kdtrain.deploy.export.graph import GraphBuilder
from kdtrain.deploy.export.operations import OPSET, translate
from kdtrain.deploy.export.trace import Trace, trace
from kdtrain.deploy.onnx_reader import INPUTS, LOGITS, METADATA, PIXELS, import_onnx
from kdtrain.errors import KdtrainError
from kdtrain.models.registry import count_parameters
from kdtrain.runtime import flow
from kdtrain.runtime.regular_files import open_regular
from kdtrain.store.card import ModelCard

_IR_VERSION = 8  # goes with opset 17; what is newer would shut older onnxruntimes out
_TOLERANCE = 1e-4  # of a logit: float32 sums in another order differ by 1e-6 to 1e-5,
_OF_THE_LARGEST = 1e-5  # and by more where logits are far larger than trained networks have them
_IMAGES = "N"  # the name of the dimension that counts them


@dataclass(frozen=True)
class Agreement:
    """How two sets of logits for the same images compare.

    Attributes:
        images: how many.
        different: how many have another most probable class.
        largest: the largest absolute difference between two logits.
        tolerance: how large it may be.
    """

    images: int
    different: int
    largest: float
    tolerance: float

    @classmethod
    def between(cls, ours: npt.NDArray[np.float32], theirs: npt.NDArray[np.float32]) -> Agreement:
        """Compares logits (images, classes)."""
        different = int((ours.argmax(axis=1) != theirs.argmax(axis=1)).sum())
        largest = float(np.abs(ours.astype(np.float64) - theirs).max())
        return cls(
            len(ours), different, largest, max(_TOLERANCE, _OF_THE_LARGEST * float(np.abs(ours).max()))
        )

    def check(self) -> None:
        """Raises KdtrainError if these logits are not those of one network.

        Within the tolerance, only an image whose best two classes are as close as that can change.
        """
        if not self.largest <= self.tolerance:  # NaN included
            raise KdtrainError(
                "the exported network is not the same, and was not written: "
                f"{self.different} of {self.images:,} predictions differ, and logits by up to "
                f"{self.largest:.1e} ({self.tolerance:.0e} is allowed)."
            )


def to_onnx(
    model: flow.nn.Module, card: ModelCard, *, normalized_input: bool = False, **provenance: Any
) -> bytes:
    """Returns a network as an ONNX file; the same network gives the same bytes.

    Args:
        model: in evaluation mode, on the CPU.
        card: what it is for.
        normalized_input: leaves the normalisation out of the graph, to whoever runs it.
        provenance: more to say in the file.

    Raises:
        KdtrainError: the network cannot be traced, or has an operation that cannot be written.
    """
    onnx = import_onnx()[0]
    traced = trace(model, card.image_shape)
    graph = _graph(traced, card, INPUTS if normalized_input else PIXELS)
    about = dataclasses.asdict(card) | provenance
    about |= {"precision": "float32", "parameters": count_parameters(model), "opset": OPSET}
    return finish(onnx, graph, about)


def finish(onnx: Any, graph: Any, about: dict[str, Any]) -> bytes:
    """Returns a graph as a file that says what it is, once onnx's checker has found it to be valid."""
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
    except Exception as error:  # of several types
        raise KdtrainError(
            f"the network cannot be exported: onnx finds its graph invalid: {error}."
        ) from error
    content: bytes = file.SerializeToString(deterministic=True)
    return content


def sha256(path: Path) -> str | None:
    """Returns the SHA-256 (hex) of a checkpoint; None for a OneFlow directory, which is many files."""
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
