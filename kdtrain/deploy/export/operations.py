"""What each of oneflow's operations is in ONNX."""

from __future__ import annotations

from kdtrain.deploy.export import layers, numbers, shapes
from kdtrain.deploy.export.graph import GraphBuilder
from kdtrain.deploy.export.trace import Operation

OPSET = 17
"""The version of ONNX's operators that is written: onnxruntime has known it since 1.12 (2022)."""

_TRANSLATIONS = layers.TRANSLATIONS | shapes.TRANSLATIONS | numbers.TRANSLATIONS


def translate(operation: Operation, graph: GraphBuilder) -> None:
    """Adds an operation to a graph.

    Raises:
        KdtrainError: it has no counterpart here; the text names it.
    """
    translation = _TRANSLATIONS.get(operation.kind)
    if translation is None:
        raise operation.refused("has no counterpart in ONNX that kdtrain knows")
    graph.begin(operation)
    graph.end(operation, translation(operation, graph))
