"""ONNX graphs that tests make: a builder, and files of a few kilobytes that ask for gigabytes or minutes.

Each of the latter declares a network for MNIST.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

CARD: dict[str, Any] = {
    "mode": "student",
    "arch": "any",
    "dataset": "mnist",
    "image_shape": [1, 28, 28],
    "classes": [str(digit) for digit in range(10)],
    "mean": [0.5],
    "std": [0.5],
    "metrics": {},
    "versions": {},
    "epochs": 1,
    "images": 100,
    "held_out": "",
    "temperature": 1.0,
    "precision": "float32",
    "parameters": 7840,
}


Shape = Sequence[int | str]


def build(
    nodes: Sequence[NodeProto],
    constants: dict[str, Any],
    given: tuple[str, int, Shape],
    returned: tuple[str, int, Shape],
    *,
    about: dict[str, Any] | None = None,
    opset: int = 17,
) -> onnx.ModelProto:
    """Returns a file with one input and one output: their names, types and shapes.

    Args:
        nodes: the graph.
        constants: its weights; arrays or tensors.
        given: the input.
        returned: the output.
        about: kdtrain's metadata.
        opset: version of the operators.
    """
    weights = [
        value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
        for name, value in constants.items()
    ]
    inputs, outputs = ([helper.make_tensor_value_info(*value)] for value in (given, returned))
    graph = helper.make_graph(nodes, "graph", inputs, outputs, weights)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    if about is not None:
        helper.set_model_props(made, {"kdtrain": json.dumps(about)})
    return made


def mnist_network(nodes: Sequence[NodeProto], constants: dict[str, Any], opset: int = 17) -> onnx.ModelProto:
    """Returns a network of kdtrain's for MNIST."""
    pixels, logits = ("pixels", TensorProto.FLOAT, ("N", 1, 28, 28)), ("logits", TensorProto.FLOAT, ("N", 10))
    return build(nodes, constants, pixels, logits, about=CARD, opset=opset)


def network(nodes: Sequence[NodeProto], constants: dict[str, Any]) -> onnx.ModelProto:
    """Returns a network of ``nodes``, which compute ``x`` from ``pixels``; its logits depend on ``x``."""
    end = [
        node("Flatten", "pixels", "flat"),
        node("MatMul", "flat weights", "plain"),
        node("ReduceMax", "x", "largest", keepdims=0),
        node("Add", "plain largest", "logits"),
    ]
    return mnist_network([*nodes, *end], {"weights": np.zeros((784, 10), np.float32)} | constants)


def node(kind: str, given: str, returned: str = "x", **options: Any) -> NodeProto:
    return helper.make_node(kind, given.split(), returned.split(), **options)


def chain(kind: str, first: str, times: int, **options: Any) -> list[NodeProto]:
    """Returns nodes each of which takes the output of the one before as both inputs."""
    names = [first, *(f"{kind}-{number}" for number in range(times - 1)), "x"]
    return [
        helper.make_node(kind, [given, given], [returned], **options)
        for given, returned in itertools.pairwise(names)
    ]


def loop() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [node("Identity", "go", "on"), node("Concat", "v v", "w", axis=0)],
        "body",
        [value("i", TensorProto.INT64, []), value("go", TensorProto.BOOL, []), value("v", 1, None)],
        [value("on", TensorProto.BOOL, []), value("w", 1, None)],
    )
    return network([node("Loop", "count yes one", body=body)], {"count": 40, "yes": True, "one": ONE})


def branch() -> onnx.ModelProto:
    value = helper.make_tensor_value_info
    sides = [
        helper.make_graph([node("Expand", "one size", name)], name, [], [value(name, 1, None)])
        for name in ("left", "right")
    ]
    return network(
        [helper.make_node("If", ["yes"], ["x"], then_branch=sides[0], else_branch=sides[1])],
        {"yes": True, "one": ONE, "size": [10**9]},
    )


def claim(*dimensions: int) -> TensorProto:
    """Returns a tensor that holds two values and declares other dimensions."""
    tensor = TensorProto(name="claim", data_type=TensorProto.FLOAT, raw_data=bytes(8))
    tensor.dims.extend(dimensions)
    return tensor


def sized_by_pixels() -> onnx.ModelProto:
    """Returns a network with a size that depends on the pixels; the file declares a small one."""
    made = network(
        [
            node("ReduceMax", "pixels", "most", keepdims=0),
            node("Cast", "most", "whole", to=TensorProto.INT64),
            node("Add", "whole size", "sizes"),
            node("Expand", "one sizes"),
        ],
        {"one": ONE, "size": [10**9]},
    )
    made.graph.value_info.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, [1]))
    return made


def many_nodes() -> onnx.ModelProto:
    names = ["pixels", *(f"n{number}" for number in range(20_000)), "x"]
    return network([node("Relu", *pair) for pair in itertools.pairwise(names)], {})


def many_images() -> onnx.ModelProto:
    """Returns a network with N to the fifth values for N images."""
    nodes = [node("Shape", "pixels", "count", start=0, end=1), node("Concat", "count " * 5, "size", axis=0)]
    return network([*nodes, node("Expand", "one size")], {"one": ONE})


def metadata() -> onnx.ModelProto:
    made = network([node("Relu", "pixels")], {})
    helper.set_model_props(made, {"kdtrain": json.dumps(CARD)[:-1] + ', "more": [' + "[]," * 10**6 + "[]]}"})
    return made


ONE = np.ones(1, np.float32)
KERNEL = np.ones((1, 1, 1, 1), np.float32)
ZERO = np.zeros(1, np.int8)
SPOT = [node("ReduceMax", "pixels", "spot", keepdims=0)]  # a value that the graph does not determine
SQUARE = [*SPOT, node("Expand", "spot size", "square")]

GRAPHS: dict[str, Callable[[], onnx.ModelProto]] = {
    "Expand": lambda: network([node("Expand", "pixels size")], {"size": [4000, 1000, 28, 28]}),
    "Expand of a constant": lambda: network([node("Expand", "one size")], {"one": ONE, "size": [10**9]}),
    "Expand by pixels": sized_by_pixels,
    "Expand by images": many_images,
    "Tile": lambda: network([node("Tile", "pixels times")], {"times": [1, 1, 2000, 2000]}),
    "Range": lambda: network(
        [node("Range", "a b c")], {"a": np.float32(0), "b": np.float32(3e9), "c": np.float32(1)}
    ),
    "Pad": lambda: network([node("Pad", "pixels sizes")], {"sizes": [0, 0, 20000, 20000] * 2}),
    "Resize": lambda: network(
        [helper.make_node("Resize", ["pixels", "", "scales"], ["x"], mode="linear")],
        {"scales": np.array([1, 1, 1000, 1000], np.float32)},
    ),
    "ConstantOfShape": lambda: network([node("ConstantOfShape", "size")], {"size": [50000, 50000]}),
    "ConstantOfShape, more than 64 bits": lambda: network(
        [node("ConstantOfShape", "size")], {"size": [2**32, 2**32, 2]}
    ),
    "Concat": lambda: network(chain("Concat", "pixels", 28, axis=1), {}),
    "Concat of shapes": lambda: network(
        [
            node("Shape", "pixels", "shape"),
            *chain("Concat", "shape", 40, axis=0)[:-1],
            node("Cast", "Concat-38", to=TensorProto.FLOAT),
        ],
        {},
    ),
    "Add": lambda: network(
        [
            *(node("Reshape", f"pixels {name}", f"the-{name}") for name in ("column", "row", "tube")),
            node("Add", "the-column the-row", "plane"),
            node("Add", "plane the-tube"),
        ],
        {"column": [784, 1, 1], "row": [1, 784, 1], "tube": [1, 1, 784]},
    ),
    "Where": lambda: network(
        [node("Where", "yes column row")],
        {"yes": True, "column": np.ones((5000, 1), np.float32), "row": np.ones((1, 5000), np.float32)},
    ),
    "MatMul of constants": lambda: network(
        [node("Expand", "one size", "square"), *chain("MatMul", "square", 40)],
        {"one": ONE, "size": [1500, 1500]},
    ),
    "MatMul": lambda: network([*SQUARE, *chain("MatMul", "square", 60)], {"size": [3000, 3000]}),
    "Einsum": lambda: network(
        [node("Reshape", "pixels all", "p"), node("Einsum", "p p p", equation="i,j,k->ijk")], {"all": [-1]}
    ),
    "Conv, its outputs": lambda: network(
        [node("Conv", "pixels kernel", pads=[30000] * 4)], {"kernel": KERNEL}
    ),
    "Conv, its kernel": lambda: network(
        [node("Expand", "kernel size", "large"), node("Conv", "pixels large", pads=[700] * 4)],
        {"kernel": KERNEL, "size": [1, 1, 401, 401]},
    ),
    "Conv, steps of 0": lambda: network([node("Conv", "pixels kernel", strides=[0, 0])], {"kernel": KERNEL}),
    "MaxPool": lambda: network([node("MaxPool", "pixels", kernel_shape=[3001, 3001], pads=[3000] * 4)], {}),
    "LRN": lambda: network([node("LRN", "pixels", size=2**31 - 1)], {}),
    "DequantizeLinear": lambda: network(
        [node("Expand", "zero size", "many"), node("DequantizeLinear", "many scale")],
        {"zero": ZERO, "size": [2 * 10**9], "scale": np.float32(1)},
    ),
    "Gather": lambda: network(
        [node("Gather", "pixels places", "wide", axis=3), node("Gather", "wide places", axis=2)],
        {"places": np.zeros(6000, np.int64)},
    ),
    "Loop": loop,
    "If": branch,
    "a tensor that claims gigabytes": lambda: network([node("Identity", "claim")], {"claim": claim(10**9)}),
    "a tensor of negative length": lambda: network([node("Identity", "claim")], {"claim": claim(-1, -2)}),
    "20,000 nodes": many_nodes,
    "metadata of millions of entries": metadata,
}

COMPUTED = {"Expand by images", "Where", "MatMul of constants", "20,000 nodes"}
"""Those that fit into the limits, if in smaller portions of images."""
