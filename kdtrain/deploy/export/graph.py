"""The builder of an ONNX graph: it collects nodes and constants."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.deploy.export.trace import BATCH, Operation, Trace
from kdtrain.deploy.onnx.reader import import_onnx

Array = npt.NDArray[np.generic]


class GraphBuilder:
    """An ONNX graph under construction.

    A value of the trace is named after its node, ``conv2d-0``. Further nodes of the same operation are
    ``gelu-2.1`` and so on. Weights keep their names, shapes and values from the checkpoint.

    Args:
        traced: the network's trace.
        images: the name of the graph's input.
    """

    def __init__(self, traced: Trace, images: str) -> None:
        self.nodes: list[Any] = []
        self.constants: dict[str, Array] = {}
        self._traced, self._images = traced, images
        self._names = {traced.images: images}
        inputs = (values for operation in traced.operations for values in operation.inputs.values())
        self._uses = Counter(value for values in inputs for value in values)
        self._operation = ""
        self._onnx = import_onnx()[0]

    def normalize(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        """Adds the normalisation of pixels: ``Normalization.apply``, with the same rounding."""
        self._operation = "normalization"
        scale, shift = np.array(std).reshape(-1, 1, 1), np.array(mean).reshape(-1, 1, 1)
        scaled = self.add("Mul", self._images, self.constant(1 / (255 * scale)))
        self._names[self._traced.images] = self.add("Sub", scaled, self.constant(shift / scale))

    def finish(self, logits: str) -> None:
        """Adds the graph's output under the name ``logits``."""
        self._operation = logits
        self.add("Identity", self._names[self._traced.logits])

    def begin(self, operation: Operation) -> None:
        """Starts an operation: nodes that are added from now on are named after it."""
        self._operation = operation.name

    def end(self, operation: Operation, name: str) -> None:
        """Ends an operation, whose output is that of the node called ``name``."""
        self._names[operation.output] = name

    def value(self, value: str) -> str:
        """Returns the name in the graph of a value of the trace; adds the value if it is a weight."""
        weight = self.weight(value)
        if weight is not None and value not in self._names:
            name, array = self._traced.weights[value]
            self.constants[name] = array
            self._names[value] = name
        return self._names[value]

    def inputs(self, operation: Operation, *names: str) -> list[str]:
        """Returns the graph's names of an operation's inputs: those with oneflow's ``names``, or all."""
        values = [value for name in names or operation.inputs for value in operation.inputs[name]]
        return [self.value(value) for value in values]

    def weight(self, value: str) -> Array | None:
        """Returns a weight as an array of its own shape and dtype; None for any other value."""
        return self._traced.weights[value][1] if value in self._traced.weights else None

    def shape(self, value: str) -> tuple[int, ...]:
        """Returns a value's shape; multiples of ``BATCH`` stand for the number of images."""
        return self._traced.shapes[value]

    def is_used_once(self, value: str) -> bool:
        """Returns whether a value is the input of exactly one operation."""
        return self._uses[value] == 1 and value != self._traced.logits

    def node_of(self, value: str) -> Any:
        """Returns the node that computes a value; None for weights and images."""
        name = self._names.get(value)
        return next((node for node in reversed(self.nodes) if name in node.output), None)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node, and returns the name of its output."""
        taken = {node.name for node in self.nodes if node.name.split(".")[0] == self._operation}
        name = f"{self._operation}.{len(taken)}" if taken else self._operation
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, array: npt.ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        """Adds a constant of any shape, unless the graph has an equal one; returns its name."""
        values = np.asarray(array, dtype)
        for name, other in self.constants.items():
            if name.startswith("number-") and other.dtype == values.dtype and np.array_equal(other, values):
                return name
        name = f"number-{sum(name.startswith('number-') for name in self.constants)}"
        self.constants[name] = values
        return name

    def integers(self, *values: int) -> str:
        """Adds a constant vector, (N,) int64: ONNX's type for shapes and axes."""
        return self.constant(values, np.int64)

    def dimensions(self, shape: list[int]) -> str:
        """Adds a vector, (rank,) int64, that holds ``shape`` with the actual number of images."""
        if all(length % BATCH for length in shape):
            return self.integers(*shape)
        parts = []
        for length in shape:
            if length % BATCH:
                parts.append(self.integers(length))
                continue
            count, times = self.add("Shape", self._images, start=0, end=1), length // BATCH
            parts.append(count if times == 1 else self.add("Mul", count, self.integers(times)))
        return self.add("Concat", *parts, axis=0)


Translation = Callable[[Operation, GraphBuilder], str]
"""Adds the nodes that compute an operation, and returns the name of the last node's output."""
