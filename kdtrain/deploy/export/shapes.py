"""Translations of operations that rearrange values, and of constants."""

from __future__ import annotations

import numpy as np

from kdtrain.deploy.export.graph import GraphBuilder, Translation
from kdtrain.deploy.export.trace import BATCH, Operation


def _reshape(operation: Operation, graph: GraphBuilder) -> str:
    shape = operation.attributes["shape"]
    dynamic = [length for length in shape if length % BATCH == 0]
    if len(dynamic) > 1:
        raise operation.refused("has the number of images in two dimensions")
    sizes = graph.integers(*(-1 if length in dynamic else length for length in shape))
    return graph.add("Reshape", *graph.inputs(operation), sizes)


def _transpose(operation: Operation, graph: GraphBuilder) -> str:
    return graph.add("Transpose", *graph.inputs(operation), perm=operation.attributes["perm"])


def _expand_dims(operation: Operation, graph: GraphBuilder) -> str:
    return graph.add("Unsqueeze", *graph.inputs(operation), graph.integers(operation.attributes["axis"]))


def _squeeze(operation: Operation, graph: GraphBuilder) -> str:
    return graph.add("Squeeze", *graph.inputs(operation), graph.integers(*operation.attributes["axes"]))


def _concat(operation: Operation, graph: GraphBuilder) -> str:
    return graph.add("Concat", *graph.inputs(operation), axis=operation.attributes["axis"])


def _slice(operation: Operation, graph: GraphBuilder) -> str:
    shape = graph.shape(operation.inputs["x"][0])
    names = ("start", "stop", "step")
    ranges = zip(*(operation.attributes[name] for name in names), range(len(shape)), strict=True)
    cuts = [cut for cut in ranges if cut[:3] != (0, shape[cut[3]], 1)]  # the other axes are kept whole
    if any(axis == 0 and stop % BATCH == 0 for _, stop, _, axis in cuts):
        raise operation.refused("selects images by their number")
    if not cuts:
        return graph.add("Identity", *graph.inputs(operation))
    starts, stops, steps, axes = (graph.integers(*numbers) for numbers in zip(*cuts, strict=True))
    return graph.add("Slice", *graph.inputs(operation), starts, stops, axes, steps)


def _narrow(operation: Operation, graph: GraphBuilder) -> str:
    axis, start, length = (operation.attributes[name] for name in ("dim", "start", "length"))
    if axis == 0:
        raise operation.refused("selects images")
    first, stop, axes = graph.integers(start), graph.integers(start + length), graph.integers(axis)
    return graph.add("Slice", *graph.inputs(operation), first, stop, axes)


def _expand(operation: Operation, graph: GraphBuilder) -> str:
    return graph.add("Expand", *graph.inputs(operation), graph.dimensions([*graph.shape(operation.output)]))


def _pad(operation: Operation, graph: GraphBuilder) -> str:
    options = operation.attributes
    sizes = graph.integers(*options["padding_before"], *options["padding_after"])
    value = graph.constant(options["floating_constant_value"])
    return graph.add("Pad", *graph.inputs(operation), sizes, value, mode="constant")


def _constant(operation: Operation, graph: GraphBuilder) -> str:
    options, shape = operation.attributes, [*graph.shape(operation.output)]
    if not options["is_floating_value"]:
        raise operation.refused("makes integers")
    value = options["floating_value"]
    if all(length % BATCH for length in shape):
        return graph.constant(np.full(shape, value))
    return graph.add("Expand", graph.constant(value), graph.dimensions(shape))


TRANSLATIONS: dict[str, Translation] = {
    "reshape": _reshape,
    "transpose": _transpose,
    "expand_dims": _expand_dims,
    "squeeze": _squeeze,
    "concat": _concat,
    "slice": _slice,
    "narrow": _narrow,
    "expand": _expand,
    "pad": _pad,
    "constant": _constant,
}
