"""The table of translations from oneflow's operations to ONNX."""

from __future__ import annotations

from kdtrain.deploy.export import layers, numbers, shapes
from kdtrain.deploy.export.graph import GraphBuilder
from kdtrain.deploy.export.trace import Operation

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
