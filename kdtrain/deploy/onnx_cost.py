"""What the graph of an ONNX file may hold, and what it costs, told before anything is computed.

A file of a kilobyte can ask for any amount of memory and time: ``Expand`` makes gigabytes of one number.
So only operators that image classifiers need are allowed, the size of every tensor must follow from the
graph alone, and sizes and multiply-adds are bounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kdtrain.errors import CheckpointError, one_line

OPERATORS = frozenset(
    """
    Abs Add And AveragePool BatchNormalization Cast Ceil Celu Clip Concat Constant ConstantOfShape Conv
    ConvInteger Cos DepthToSpace DequantizeLinear Div Dropout DynamicQuantizeLinear Elu Equal Erf Exp Expand
    Flatten Floor Gather Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual GroupNormalization
    HardSigmoid HardSwish Identity InstanceNormalization LRN LayerNormalization LeakyRelu Less LessOrEqual Log
    LogSoftmax LpNormalization MatMul MatMulInteger Max MaxPool Mean Min Mish Mul Neg Not Or PRelu Pad Pow
    QLinearConv QLinearMatMul QuantizeLinear Range Reciprocal ReduceL1 ReduceL2 ReduceMax ReduceMean ReduceMin
    ReduceProd ReduceSum ReduceSumSquare Relu Reshape Resize Round Selu Shape Sigmoid Sign Sin Slice Softmax
    Softplus Softsign SpaceToDepth Split Sqrt Squeeze Sub Sum Tanh ThresholdedRelu Tile Transpose Unsqueeze
    Where
    """.split()  # noqa: SIM905 (a hundred quoted names would be harder to read)
)
"""What kdtrain writes (``kdtrain/export``), and what others write for networks that classify images."""

LARGEST_PEAK = 64 << 20
"""Bytes that the tensors of one image may take at one time; VGG-19 at 224x224 takes 26 MB."""

LARGEST_WORK = 50_000_000_000
"""Multiply-adds for one image, whatever the file; VGG-19 at 224x224 takes 20 billion.

A network uses each of its weights at most once for each pixel, or nearly so: a smaller file may ask for less.
"""

_MOST_NODES = 10_000  # nodes and weights; DenseNet-201 has 1,723
_MOST_VALUES = 1 << 28  # of all tensors of one image together; DenseNet-201 at 224x224 has 77 million
_FROM_WEIGHTS = 8  # bytes computed from weights, for each one in the file: float32 of int8 takes four
_SLACK = 16 << 20  # bytes of them, whatever the size of the file
_LITTLE = 4096  # bytes of a constant that may be a shape; the numbers in larger ones are not looked at
_PER_BYTE = 2  # multiply-adds for each byte of the file and each pixel; SqueezeNet in 8 bits takes 0.1,
_BASE = 20_000_000  # and beside those
_PER_NUMBER = 4  # multiply-adds take as long as to read or write a number
_PER_RESIZED = 64  # multiply-adds for each number of a Resize: cubic in two dimensions takes 16
_BYTES = {"FLOAT": 4, "DOUBLE": 8, "FLOAT16": 2, "BFLOAT16": 2, "BOOL": 1, "INT8": 1, "UINT8": 1,
          "INT16": 2, "UINT16": 2, "INT32": 4, "UINT32": 4, "INT64": 8, "UINT64": 8}  # fmt: skip
"""What a number takes, by ONNX's names of types. Texts are missing: nobody knows their lengths."""


class GraphError(CheckpointError):
    """A graph that is not computed. The text goes on after the name of its file."""


@dataclass(frozen=True)
class Cost:
    """What a graph takes to compute.

    Attributes:
        peak: bytes of the tensors that are needed at one time, for one image.
        work: multiply-adds for one image; a number that is read or written counts as some.
    """

    peak: int
    work: int


@dataclass(frozen=True)
class _Tensor:
    """A value of the graph for one image: its shape, and the bytes of one of its numbers."""

    shape: tuple[int, ...]
    width: int

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        return self.values * self.width


def graph_cost(onnx: Any, model: Any, images: str) -> Cost:
    """Returns the cost of a graph.

    Args:
        onnx: the module.
        model: a ``ModelProto``; it is changed on the way: only one image goes in.
        images: the name of the graph's input, whose first dimension counts images.

    Raises:
        GraphError: it holds what no classifier needs, costs too much, or its cost cannot be told.
    """
    _check_nodes(model)
    size = model.ByteSize()
    tensors = _infer(onnx, model, images)
    nodes = model.graph.node
    varying = {images}
    for node in nodes:
        if not varying.isdisjoint(node.input):
            varying.update(filter(None, node.output))
    fixed = sum(tensor.size for name, tensor in tensors.items() if name not in varying)
    _check(fixed, "bytes of weights", _FROM_WEIGHTS * size + _SLACK)
    made = {name: tensor for name, tensor in tensors.items() if name in varying}
    _check(sum(tensor.values for tensor in made.values()), "numbers for one image", _MOST_VALUES)
    peak = _peak(nodes, {name: tensor.size for name, tensor in made.items()})
    _check(peak, "bytes at one time for one image", LARGEST_PEAK)
    work = sum(_work(node, tensors) for node in nodes)
    pixels = math.prod(tensors[images].shape[2:])
    _check(work, "multiply-adds for one image", min(LARGEST_WORK, _BASE + _PER_BYTE * size * pixels))
    return Cost(peak, work)


def reason(error: Exception) -> str:
    """Returns what onnx or onnxruntime say of a failure, in one line without a full stop."""
    text = one_line(error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return "it needs more memory than is allowed"
    return text


def _check(number: int, what: str, most: int) -> None:
    if number > most:
        raise GraphError(f"is too large to be computed: it has {number:,} {what}, and {most:,} are allowed")


def _check_nodes(model: Any) -> None:
    """Refuses what could read other files, never end, or hold more than is seen."""
    nodes, weights = model.graph.node, model.graph.initializer
    _check(len(nodes) + len(weights), "nodes and weights", _MOST_NODES)
    tensors = [*weights, *(attribute.t for node in nodes for attribute in node.attribute)]
    if any(tensor.data_location or tensor.external_data for tensor in tensors):
        raise GraphError("refers to another file for its weights; kdtrain writes all into one")
    foreign = {
        node.op_type
        for node in nodes
        if node.domain not in ("", "ai.onnx")
        or node.op_type not in OPERATORS
        or any(_has_more(attribute) for attribute in node.attribute)
    }
    if foreign or model.functions or model.graph.sparse_initializer:
        names = ", ".join(sorted(foreign)) or "functions or sparse tensors"
        raise GraphError(f"is not an ONNX file that kdtrain wrote: it has {names!r} in it")


def _has_more(attribute: Any) -> bool:
    """Returns whether an attribute holds graphs, as loops have, or tensors in unusual places."""
    return bool(
        attribute.HasField("g") or attribute.graphs or attribute.tensors
        or attribute.HasField("sparse_tensor") or attribute.sparse_tensors
    )  # fmt: skip


def _infer(onnx: Any, model: Any, images: str) -> dict[str, _Tensor]:
    """Returns all tensors of the graph by name, for one image.

    Of what the file says about shapes, only that of the images is believed. All but the smallest weights
    become inputs of the graph, so that their numbers are not copied.
    """
    graph, helper = model.graph, onnx.helper
    widths = {number: _BYTES[name] for name, number in onnx.TensorProto.DataType.items() if name in _BYTES}
    (given,) = (value for value in graph.input if value.name == images)
    given.type.tensor_type.shape.dim[0].dim_value = 1
    constants = _constants(graph)
    inputs, little = [given], []
    for name, tensor in constants.items():
        if min(tensor.dims, default=0) < 0:
            raise GraphError(f"is damaged: {name!r} has a negative length")
        if math.prod(tensor.dims) * widths.get(tensor.data_type, _LITTLE) < _LITTLE:
            tensor.name = name
            little.append(tensor)
        else:
            inputs.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    nodes = [node for node in graph.node if node.op_type != "Constant" or node.output[0] not in constants]
    skeleton = helper.make_model(
        helper.make_graph(nodes, "", inputs, [], little), opset_imports=model.opset_import
    )
    try:
        found = onnx.shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True).graph
    except Exception as error:  # of several types
        raise GraphError(f"cannot be computed: {reason(error)}") from error
    tensors = {tensor.name: _Tensor(tuple(tensor.dims), widths[tensor.data_type]) for tensor in little}
    for value in (*found.input, *found.value_info):
        dimensions = value.type.tensor_type.shape.dim
        known = all(dimension.HasField("dim_value") for dimension in dimensions)
        if known and value.type.tensor_type.HasField("shape") and value.type.tensor_type.elem_type in widths:
            shape = tuple(dimension.dim_value for dimension in dimensions)
            tensors[value.name] = _Tensor(shape, widths[value.type.tensor_type.elem_type])
    for node in graph.node:
        for name in filter(None, (*node.input, *node.output)):
            if name not in tensors or min(tensors[name].shape, default=0) < 0:
                raise GraphError(
                    f"cannot be computed within limits: it does not say beforehand how large {name!r} of its "
                    f"{node.op_type} is"
                )
    return tensors


def _constants(graph: Any) -> dict[str, Any]:
    """Returns the tensors that the graph holds by the names of their values.

    Raises:
        GraphError: two have the same name, and it is not said which one counts.
    """
    found = [(tensor.name, tensor) for tensor in graph.initializer]
    found += [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant" and node.output
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    constants = dict(found)
    if len(constants) < len(found):
        raise GraphError("is damaged: two of its tensors have the same name")
    return constants


def _peak(nodes: Sequence[Any], sizes: Mapping[str, int]) -> int:
    """Returns the most bytes that are needed at one time, where each tensor goes after its last use."""
    last = {name: number for number, node in enumerate(nodes) for name in (*node.output, *node.input)}
    alive = peak = sum(sizes.values()) - sum(sizes.get(name, 0) for node in nodes for name in node.output)
    for number, node in enumerate(nodes):
        alive += sum(sizes.get(name, 0) for name in node.output)
        peak = max(peak, alive)
        names = {*node.input, *node.output}
        alive -= sum(sizes.get(name, 0) for name in names if last[name] == number)
    return peak


def _work(node: Any, tensors: Mapping[str, _Tensor]) -> int:
    """Returns the multiply-adds that a node costs."""
    inputs = [tensors[name] for name in node.input if name]
    made = sum(tensors[name].values for name in node.output if name)
    options = {attribute.name: attribute for attribute in node.attribute}
    times = 0
    if node.op_type in ("Conv", "ConvInteger", "QLinearConv"):
        weights = inputs[3 if node.op_type == "QLinearConv" else 1]
        times = math.prod(weights.shape[1:])
    elif node.op_type in ("MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"):
        turned = "transA" in options and options["transA"].i != 0
        times = inputs[0].shape[0 if turned else -1]
    elif node.op_type in ("MaxPool", "AveragePool"):
        times = math.prod(options["kernel_shape"].ints)
    elif node.op_type == "LRN":
        times = options["size"].i
    elif node.op_type == "Resize":
        times = _PER_RESIZED
    return made * max(times, 0) + _PER_NUMBER * (made + sum(tensor.values for tensor in inputs))
