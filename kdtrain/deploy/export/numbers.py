"""Translations of arithmetic, activations and reductions."""

from __future__ import annotations

import math

from kdtrain.deploy.export.graph import GraphBuilder, Translation
from kdtrain.deploy.export.trace import Operation

_SAME = {
    "abs": "Abs",
    "broadcast_div": "Div",
    "broadcast_maximum": "Max",
    "broadcast_minimum": "Min",
    "broadcast_mul": "Mul",
    "broadcast_sub": "Sub",
    "ceil": "Ceil",
    "cos": "Cos",
    "elementwise_maximum": "Max",
    "elementwise_minimum": "Min",
    "erf": "Erf",
    "exp": "Exp",
    "floor": "Floor",
    "hardswish": "HardSwish",
    "identity": "Identity",
    "log": "Log",
    "multiply": "Mul",
    "negative": "Neg",
    "reciprocal": "Reciprocal",
    "relu": "Relu",
    "sigmoid": "Sigmoid",
    "sin": "Sin",
    "softsign": "Softsign",
    "sqrt": "Sqrt",
    "tanh": "Tanh",
}
"""Operations that ONNX has with the same inputs in the same order, and its names for them."""


def _same(operation: Operation, graph: GraphBuilder) -> str:
    names = ("x", "y") if {"x", "y"} == set(operation.inputs) else ()
    return graph.add(_SAME[operation.kind], *graph.inputs(operation, *names))


def _add_n(operation: Operation, graph: GraphBuilder) -> str:
    """Adds a chain of binary sums, which onnxruntime can compute in 8 bits."""
    total, *summands = graph.inputs(operation)
    for summand in summands:
        total = graph.add("Add", total, summand)
    return total


def _scalar(operation: Operation, graph: GraphBuilder) -> str:
    options = operation.attributes
    kind = {"add": "Add", "sub": "Sub", "mul": "Mul", "div": "Div", "pow": "Pow"}[operation.kind[7:]]
    number = options["float_operand"] if options["has_float_operand"] else options["int_operand"]
    return graph.add(kind, *graph.inputs(operation), graph.constant(number))


def _reduce_sum(operation: Operation, graph: GraphBuilder) -> str:
    options = operation.attributes
    axes = graph.integers(*options["axis"])
    return graph.add("ReduceSum", *graph.inputs(operation), axes, keepdims=int(options["keepdims"]))


def _reduce(operation: Operation, graph: GraphBuilder) -> str:
    kind = {"reduce_max": "ReduceMax", "reduce_min": "ReduceMin"}[operation.kind]
    options = operation.attributes
    return graph.add(kind, *graph.inputs(operation), axes=options["axis"], keepdims=int(options["keepdims"]))


def _var(operation: Operation, graph: GraphBuilder) -> str:
    options = operation.attributes
    (x,) = graph.inputs(operation)
    axes, keepdims = options["dim"], int(options["keepdim"])
    centred = graph.add("Sub", x, graph.add("ReduceMean", x, axes=axes, keepdims=1))
    variance = graph.add("ReduceMean", graph.add("Mul", centred, centred), axes=axes, keepdims=keepdims)
    if not options["unbiased"]:
        return variance
    count = math.prod(graph.shape(operation.inputs["input"][0])[axis] for axis in axes)
    return graph.add("Mul", variance, graph.constant(count / (count - 1)))


def _square(operation: Operation, graph: GraphBuilder) -> str:
    return graph.add("Mul", *graph.inputs(operation) * 2)


def _rsqrt(operation: Operation, graph: GraphBuilder) -> str:
    return graph.add("Reciprocal", graph.add("Sqrt", *graph.inputs(operation)))


def _softmax(operation: Operation, graph: GraphBuilder) -> str:
    kind = {"softmax": "Softmax", "log_softmax": "LogSoftmax"}[operation.kind]
    return graph.add(kind, *graph.inputs(operation), axis=-1)


def _slope(operation: Operation, graph: GraphBuilder) -> str:
    kind = {"leaky_relu": "LeakyRelu", "elu": "Elu"}[operation.kind]
    return graph.add(kind, *graph.inputs(operation), alpha=operation.attributes["alpha"])


def _hardsigmoid(operation: Operation, graph: GraphBuilder) -> str:
    return graph.add("HardSigmoid", *graph.inputs(operation), alpha=1 / 6, beta=0.5)


def _hardtanh(operation: Operation, graph: GraphBuilder) -> str:
    low = graph.constant(operation.attributes["min_val"])
    high = graph.constant(operation.attributes["max_val"])
    return graph.add("Clip", *graph.inputs(operation), low, high)


def _clip(operation: Operation, graph: GraphBuilder) -> str:
    """Adds a ``Clip`` with a lower bound, an upper bound or both."""
    bounds = [
        graph.constant(operation.attributes[name]) if name in operation.attributes else ""
        for name in ("floating_min", "floating_max")
    ]
    return graph.add("Clip", *graph.inputs(operation), *bounds)


def _silu(operation: Operation, graph: GraphBuilder) -> str:
    (x,) = graph.inputs(operation)
    return graph.add("Mul", x, graph.add("Sigmoid", x))


def _mish(operation: Operation, graph: GraphBuilder) -> str:
    (x,) = graph.inputs(operation)
    return graph.add("Mul", x, graph.add("Tanh", graph.add("Softplus", x)))


def _gelu(operation: Operation, graph: GraphBuilder) -> str:
    """Adds x/2 * (1 + erf(x / sqrt 2)): Hendrycks, Gimpel, "GELUs" (2016), section 2."""
    (x,) = graph.inputs(operation)
    erf = graph.add("Erf", graph.add("Mul", x, graph.constant(math.sqrt(0.5))))
    half = graph.add("Mul", x, graph.constant(0.5))
    return graph.add("Mul", half, graph.add("Add", erf, graph.constant(1)))


TRANSLATIONS: dict[str, Translation] = {
    **dict.fromkeys(_SAME, _same),
    "add_n": _add_n,
    "scalar_add": _scalar,
    "scalar_sub": _scalar,
    "scalar_mul": _scalar,
    "scalar_div": _scalar,
    "scalar_pow": _scalar,
    "reduce_sum": _reduce_sum,
    "reduce_max": _reduce,
    "reduce_min": _reduce,
    "var": _var,
    "square": _square,
    "rsqrt": _rsqrt,
    "softmax": _softmax,
    "log_softmax": _softmax,
    "leaky_relu": _slope,
    "elu": _slope,
    "hardsigmoid": _hardsigmoid,
    "hardtanh": _hardtanh,
    "clip_by_scalar": _clip,
    "clip_by_scalar_min": _clip,
    "clip_by_scalar_max": _clip,
    "silu": _silu,
    "mish": _mish,
    "gelu": _gelu,
}
