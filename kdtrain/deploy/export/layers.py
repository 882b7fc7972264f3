"""Translations of layers with weights, and of pooling."""

from __future__ import annotations

import math

import numpy as np

from kdtrain.deploy.export.graph import GraphBuilder, Translation
from kdtrain.deploy.export.trace import Operation


def _takes_bias(graph: GraphBuilder, x: str, bias: str) -> bool:
    """Returns whether ``x`` comes from a convolution or matrix product that can take this bias as input."""
    node, weight = graph.node_of(x), graph.weight(bias)
    if node is None or weight is None or not graph.is_used_once(x):
        return False
    axis = 1  # the channels of a convolution, the units of a matrix product
    return (
        node.op_type in ("Conv", "Gemm") and len(node.input) == 2 and weight.shape == (graph.shape(x)[axis],)
    )


def _with_bias(graph: GraphBuilder, x: str, bias: str) -> str:
    node = graph.node_of(x)
    node.input.append(graph.value(bias))
    output: str = node.output[0]
    return output


def _conv(operation: Operation, graph: GraphBuilder) -> str:
    options = operation.attributes
    return graph.add(
        "Conv",
        *graph.inputs(operation, "in", "weight"),
        kernel_shape=options["kernel_size"],
        strides=options["strides"],
        pads=options["padding_before"] * 2,
        dilations=options["dilation_rate"],
        group=options["groups"],
    )


def _bias_add(operation: Operation, graph: GraphBuilder) -> str:
    x, bias = operation.inputs["a"][0], operation.inputs["b"][0]
    if operation.attributes["axis"] == 1 and _takes_bias(graph, x, bias):
        return _with_bias(graph, x, bias)
    trailing = len(graph.shape(x)) - operation.attributes["axis"] - 1
    shaped = graph.add("Reshape", graph.value(bias), graph.integers(-1, *[1] * trailing))
    return graph.add("Add", graph.value(x), shaped)


def _broadcast_add(operation: Operation, graph: GraphBuilder) -> str:
    x, y = operation.inputs["x"][0], operation.inputs["y"][0]
    if _takes_bias(graph, x, y):
        return _with_bias(graph, x, y)
    return graph.add("Add", graph.value(x), graph.value(y))


def _matmul(operation: Operation, graph: GraphBuilder) -> str:
    options = operation.attributes
    return graph.add(
        "Gemm",
        *graph.inputs(operation, "a", "b"),
        alpha=options["alpha"],
        transA=int(options["transpose_a"]),
        transB=int(options["transpose_b"]),
    )


def _broadcast_matmul(operation: Operation, graph: GraphBuilder) -> str:
    factors = []
    for side in ("a", "b"):
        value = operation.inputs[side][0]
        weight = graph.weight(value)
        if not operation.attributes[f"transpose_{side}"]:
            factor = graph.value(value)
        else:
            axes = [*range(len(graph.shape(value)))]
            axes[-2:] = axes[-1], axes[-2]
            if weight is None:
                factor = graph.add("Transpose", graph.value(value), perm=axes)
            else:
                factor = graph.constant(weight.transpose(axes))
        factors.append(factor)
    product = graph.add("MatMul", *factors)
    alpha = operation.attributes["alpha"]
    return product if alpha == 1 else graph.add("Mul", product, graph.constant(alpha))


def _normalization(operation: Operation, graph: GraphBuilder) -> str:
    options = operation.attributes
    if options["training"] or options["axis"] != 1:
        raise operation.refused("uses the batch's statistics, or an axis other than the channels")
    names = ("x", "gamma", "beta", "moving_mean", "moving_variance")
    return graph.add("BatchNormalization", *graph.inputs(operation, *names), epsilon=options["epsilon"])


def _prelu(operation: Operation, graph: GraphBuilder) -> str:
    (slope,) = operation.inputs["alpha"]
    trailing = len(graph.shape(operation.inputs["x"][0])) - 2
    shaped = graph.add("Reshape", graph.value(slope), graph.integers(-1, *[1] * trailing))
    return graph.add("PRelu", *graph.inputs(operation, "x"), shaped)


def _max_pool(operation: Operation, graph: GraphBuilder) -> str:
    options = operation.attributes
    return graph.add(
        "MaxPool",
        *graph.inputs(operation),
        kernel_shape=options["kernel_size"],
        strides=options["stride"],
        pads=options["padding"] * 2,
        dilations=options["dilation"],
        ceil_mode=int(options["ceil_mode"]),
    )


def _avg_pool(operation: Operation, graph: GraphBuilder) -> str:
    options = operation.attributes
    if options["divisor_override"]:
        raise operation.refused("has a divisor_override")
    return graph.add(
        "AveragePool",
        *graph.inputs(operation),
        kernel_shape=options["kernel_size"],
        strides=options["stride"],
        pads=options["padding"] * 2,
        count_include_pad=int(options["count_include_pad"]),
        ceil_mode=int(options["ceil_mode"]),
    )


def _adaptive_avg_pool(operation: Operation, graph: GraphBuilder) -> str:
    """Adds a global pooling, or matrix products with a matrix of means for rows and one for columns.

    ONNX has adaptive pooling to 1x1 only.
    """
    x, sizes = operation.inputs["x"][0], operation.attributes["output_size"]
    if set(sizes) == {1}:
        return graph.add("GlobalAveragePool", graph.value(x))
    height, width = graph.shape(x)[2:]
    rows = graph.add("MatMul", graph.constant(_means(height, sizes[0])), graph.value(x))
    return graph.add("MatMul", rows, graph.constant(_means(width, sizes[1]).T))


def _means(length: int, pixels: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    """Returns a (pixels, length) float32 matrix; row i averages the input pixels of output pixel i."""
    matrix = np.zeros((pixels, length), np.float32)
    for row in range(pixels):
        first, last = row * length // pixels, math.ceil((row + 1) * length / pixels)
        matrix[row, first:last] = 1 / (last - first)
    return matrix


TRANSLATIONS: dict[str, Translation] = {
    "conv2d": _conv,
    "bias_add": _bias_add,
    "broadcast_add": _broadcast_add,
    "matmul": _matmul,
    "broadcast_matmul": _broadcast_matmul,
    "batch_matmul": _broadcast_matmul,
    "normalization": _normalization,
    "prelu": _prelu,
    "max_pool_2d": _max_pool,
    "avg_pool_2d": _avg_pool,
    "adaptive_avg_pool2d": _adaptive_avg_pool,
}
