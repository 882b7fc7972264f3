"""Collects the nodes and constants of an ONNX graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.deploy.export.trace import BATCH, Operation, Trace
from kdtrain.deploy.onnx_reader import import_onnx

Array = npt.NDArray[np.generic]


class GraphBuilder:
    """An ONNX graph in the making.

    Values of the trace get names of nodes, ``conv2d-0``; a further node of the same operation is
    ``gelu-2.1``. Weights keep the names, shapes and numbers that they have in the checkpoint.

    Args:
        traced: the network.
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
        """Adds what the data loader does to pixels: ``Normalization.apply``, with the same rounding."""
        self._operation = "normalization"
        scale, shift = np.array(std).reshape(-1, 1, 1), np.array(mean).reshape(-1, 1, 1)
        scaled = self.add("Mul", self._images, self.constant(1 / (255 * scale)))
        self._names[self._traced.images] = self.add("Sub", scaled, self.constant(shift / scale))

    def finish(self, logits: str) -> None:
        """Gives the network's result its name."""
        self._operation = logits
        self.add("Identity", self._names[self._traced.logits])

    def begin(self, operation: Operation) -> None:
        """Makes nodes that are added from now on belong to an operation."""
        self._operation = operation.name

    def end(self, operation: Operation, name: str) -> None:
        """Says which node's output is the operation's."""
        self._names[operation.output] = name

    def value(self, value: str) -> str:
        """Returns the name that a value of the trace has in the graph."""
        weight = self.weight(value)
        if weight is not None and value not in self._names:
            name, array = self._traced.weights[value]
            self.constants[name] = array
            self._names[value] = name
        return self._names[value]

    def inputs(self, operation: Operation, *names: str) -> list[str]:
        """Returns the names of what goes into an operation, by oneflow's names for it; by default all."""
        values = [value for name in names or operation.inputs for value in operation.inputs[name]]
        return [self.value(value) for value in values]

    def weight(self, value: str) -> Array | None:
        """Returns the numbers of a value, if it is one of the network's weights."""
        return self._traced.weights[value][1] if value in self._traced.weights else None

    def shape(self, value: str) -> tuple[int, ...]:
        """Returns a value's shape; ``BATCH`` stands for the number of images."""
        return self._traced.shapes[value]

    def is_used_once(self, value: str) -> bool:
        """Returns whether one operation alone goes on with a value."""
        return self._uses[value] == 1 and value != self._traced.logits

    def node_of(self, value: str) -> Any:
        """Returns the node that a value comes from, or None."""
        name = self._names.get(value)
        return next((node for node in reversed(self.nodes) if name in node.output), None)

    def add(self, kind: str, *inputs: str, **attributes: Any) -> str:
        """Adds a node, and returns the name of its output."""
        taken = {node.name for node in self.nodes if node.name.split(".")[0] == self._operation}
        name = f"{self._operation}.{len(taken)}" if taken else self._operation
        self.nodes.append(self._onnx.helper.make_node(kind, inputs, [name], name, **attributes))
        return name

    def constant(self, array: npt.ArrayLike, dtype: type[np.generic] = np.float32) -> str:
        """Adds a constant, unless an equal one is there, and returns its name."""
        values = np.asarray(array, dtype)
        for name, known in self.constants.items():
            if name.startswith("number-") and known.dtype == values.dtype and np.array_equal(known, values):
                return name
        name = f"number-{sum(name.startswith('number-') for name in self.constants)}"
        self.constants[name] = values
        return name

    def integers(self, *values: int) -> str:
        """Adds a constant vector of 64-bit integers, which is how ONNX takes shapes and axes."""
        return self.constant(values, np.int64)

    def dimensions(self, shape: list[int]) -> str:
        """Returns a vector that holds a shape, with the number of images that there are at the time."""
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
"""Adds the nodes that do what an operation does, and returns the name of the last one's output."""
