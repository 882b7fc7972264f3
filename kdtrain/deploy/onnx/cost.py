"""The operators that an ONNX file may hold, and the cost of its graph before it is computed.

A file of a kilobyte can need any amount of memory and time: ``Expand`` makes gigabytes of one number.
Therefore only the operators of image classifiers are allowed, the graph alone must determine the shape of
every tensor, and memory and multiply-adds are bounded.
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
"""Operators that kdtrain writes (``deploy/export``), and that other programs write for image classifiers."""

LARGEST_PEAK = 64 << 20
"""Limit in bytes of the tensors of one image that exist at one time; VGG-19 at 224x224 takes 26 MB."""

LARGEST_WORK = 50_000_000_000
"""Limit of multiply-adds for one image, whatever the file; VGG-19 at 224x224 takes 20 billion.

A network uses each of its weights about once for each pixel at most, so smaller files have a lower limit.
"""

_MOST_NODES = 10_000  # nodes and weights; DenseNet-201 has 1,723
_MOST_VALUES = 1 << 28  # in all tensors of one image together; DenseNet-201 at 224x224 has 77 million
_DERIVED_PER_BYTE = 8  # bytes computed from weights, for each byte of the file: float32 of int8 takes four
_DERIVED_BASE = 16 << 20  # bytes computed from weights, in addition, whatever the size of the file
_SHAPE_BYTES = 4096  # limit of a constant that may be a shape; the values of larger constants are not used
_WORK_PER_BYTE = 2  # multiply-adds for each byte of the file and each pixel; SqueezeNet in 8 bits takes 0.1
_WORK_BASE = 20_000_000  # multiply-adds in addition, whatever the size of the file
_WORK_PER_VALUE = 4  # multiply-adds that take as long as reading or writing a value
_WORK_PER_RESIZED = 64  # multiply-adds for each value of a Resize: cubic in two dimensions takes 16
_CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv"}
_PRODUCTS = _CONVOLUTIONS | {"MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"}
_BYTES = {"FLOAT": 4, "DOUBLE": 8, "FLOAT16": 2, "BFLOAT16": 2, "BOOL": 1, "INT8": 1, "UINT8": 1,
          "INT16": 2, "UINT16": 2, "INT32": 4, "UINT32": 4, "INT64": 8, "UINT64": 8}  # fmt: skip
"""Bytes of a value, by ONNX's names of types. STRING is missing: its length is not in the graph."""


class GraphError(CheckpointError):
    """A graph that is refused. The text continues a sentence that begins with the file's name."""


@dataclass(frozen=True)
class Cost:
    """The cost of computing a graph for one image.

    Attributes:
        peak: the most bytes of tensors that exist at one time.
        work: multiply-adds; a value that is read or written counts as four.
        multiply_adds: multiply-adds of convolutions and matrix products alone.
    """

    peak: int
    work: int
    multiply_adds: int = 0


@dataclass(frozen=True)
class _Tensor:
    """A tensor of the graph for one image: its shape, and the bytes of an element."""

    shape: tuple[int, ...]
    width: int

    @property
    def values(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        return self.values * self.width


def graph_cost(onnx: Any, model: Any, images: str, pixels: int | None = None, batch: int = 1) -> Cost:
    """Returns the cost of a graph for one image.

    Args:
        onnx: the module.
        model: a ``ModelProto``. Its batch size is set to ``batch`` in place.
        images: the name of the graph's input.
        pixels: height times width of an image; those of an input (N, C, H, W) by default.
        batch: the number of images that the graph takes at a time.

    Raises:
        GraphError: the graph holds what no classifier needs, exceeds a limit, or its cost is not determined.
    """
    _check_nodes(model)
    size = model.ByteSize()
    tensors = _infer(onnx, model, images, batch)
    nodes = model.graph.node
    varying = {images}
    for node in nodes:
        if not varying.isdisjoint(node.input):
            varying.update(filter(None, node.output))
    fixed = sum(tensor.size for name, tensor in tensors.items() if name not in varying)
    _check(fixed, "bytes of weights", _DERIVED_PER_BYTE * size + _DERIVED_BASE)
    computed = {name: tensor for name, tensor in tensors.items() if name in varying}
    values = sum(tensor.values for tensor in computed.values()) // batch
    _check(values, "values for one image", _MOST_VALUES)
    peak = _peak(nodes, {name: tensor.size for name, tensor in computed.items()}) // batch
    _check(peak, "bytes at one time for one image", LARGEST_PEAK)
    work = sum(_work(node, tensors) for node in nodes) // batch
    pixels = pixels or math.prod(tensors[images].shape[2:])
    _check(
        work, "multiply-adds for one image", min(LARGEST_WORK, _WORK_BASE + _WORK_PER_BYTE * size * pixels)
    )
    products = sum(_products(node, tensors) for node in nodes if node.op_type in _PRODUCTS) // batch
    return Cost(peak, work, products)


def reason(error: Exception) -> str:
    """Returns the message of an exception of onnx or onnxruntime, as one line without a full stop."""
    text = one_line(error)
    if isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text:
        return "it needs more memory than is allowed"
    return text


def _check(number: int, what: str, most: int) -> None:
    if number > most:
        raise GraphError(f"is too large to be computed: it has {number:,} {what}, and {most:,} are allowed")


def _check_nodes(model: Any) -> None:
    """Refuses nodes that could read other files, loop without end, or hide further graphs and tensors."""
    nodes, weights = model.graph.node, model.graph.initializer
    _check(len(nodes) + len(weights), "nodes and weights", _MOST_NODES)
    tensors = [*weights, *(attribute.t for node in nodes for attribute in node.attribute)]
    if any(tensor.data_location or tensor.external_data for tensor in tensors):
        raise GraphError("refers to another file for its weights")
    refused = {
        node.op_type
        for node in nodes
        if node.domain not in ("", "ai.onnx")
        or node.op_type not in OPERATORS
        or any(_is_nested(attribute) for attribute in node.attribute)
    }
    if refused or model.functions or model.graph.sparse_initializer:
        names = ", ".join(sorted(refused)) or "functions or sparse tensors"
        raise GraphError(f"contains {names!r}, which kdtrain does not compute")


def _is_nested(attribute: Any) -> bool:
    """Returns whether an attribute holds graphs, as a loop's does, or lists of tensors."""
    return bool(
        attribute.HasField("g") or attribute.graphs or attribute.tensors
        or attribute.HasField("sparse_tensor") or attribute.sparse_tensors
    )  # fmt: skip


def _infer(onnx: Any, model: Any, images: str, count: int) -> dict[str, _Tensor]:
    """Returns all tensors of the graph by name, for ``count`` images.

    The shape of the images is the only one that is taken from the file; the others are inferred. All but
    the smallest weights become inputs of the graph, so that their values are not copied.
    """
    graph, helper = model.graph, onnx.helper
    widths = {number: _BYTES[name] for name, number in onnx.TensorProto.DataType.items() if name in _BYTES}
    (batch,) = (value for value in graph.input if value.name == images)
    batch.type.tensor_type.shape.dim[0].dim_value = count
    constants = _constants(graph)
    inputs, small = [batch], []
    for name, tensor in constants.items():
        if min(tensor.dims, default=0) < 0:
            raise GraphError(f"is damaged: {name!r} has a negative length")
        if math.prod(tensor.dims) * widths.get(tensor.data_type, _SHAPE_BYTES) < _SHAPE_BYTES:
            tensor.name = name
            small.append(tensor)
        else:
            inputs.append(helper.make_tensor_value_info(name, tensor.data_type, tensor.dims))
    nodes = [node for node in graph.node if node.op_type != "Constant" or node.output[0] not in constants]
    skeleton = helper.make_model(
        helper.make_graph(nodes, "", inputs, [], small), opset_imports=model.opset_import
    )
    try:
        inferred = onnx.shape_inference.infer_shapes(skeleton, strict_mode=True, data_prop=True).graph
    except Exception as error:  # onnx raises several types
        raise GraphError(f"cannot be computed: {reason(error)}") from error
    tensors = {tensor.name: _Tensor(tuple(tensor.dims), widths[tensor.data_type]) for tensor in small}
    for value in (*inferred.input, *inferred.value_info):
        kind = value.type.tensor_type
        is_fixed = all(dimension.HasField("dim_value") for dimension in kind.shape.dim)
        if is_fixed and kind.HasField("shape") and kind.elem_type in widths:
            shape = tuple(dimension.dim_value for dimension in kind.shape.dim)
            tensors[value.name] = _Tensor(shape, widths[kind.elem_type])
    for node in graph.node:
        for name in filter(None, (*node.input, *node.output)):
            if name not in tensors or min(tensors[name].shape, default=0) < 0:
                raise GraphError(
                    f"cannot be computed within limits: its graph does not determine the shape of {name!r}, "
                    f"which a {node.op_type} reads or writes"
                )
    return tensors


def _constants(graph: Any) -> dict[str, Any]:
    """Returns the tensors that the graph holds, initializers and Constant nodes, by name.

    Raises:
        GraphError: two have the same name; programs differ in which one they use.
    """
    named = [(tensor.name, tensor) for tensor in graph.initializer]
    named += [
        (node.output[0], attribute.t)
        for node in graph.node
        if node.op_type == "Constant" and node.output
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    constants = dict(named)
    if len(constants) < len(named):
        raise GraphError("is damaged: two of its tensors have the same name")
    return constants


def _peak(nodes: Sequence[Any], sizes: Mapping[str, int]) -> int:
    """Returns the most bytes that exist at one time, if each tensor is freed after its last use."""
    last = {name: number for number, node in enumerate(nodes) for name in (*node.output, *node.input)}
    alive = peak = sum(sizes.values()) - sum(sizes.get(name, 0) for node in nodes for name in node.output)
    for number, node in enumerate(nodes):
        alive += sum(sizes.get(name, 0) for name in node.output)
        peak = max(peak, alive)
        names = {*node.input, *node.output}
        alive -= sum(sizes.get(name, 0) for name in names if last[name] == number)
    return peak


def _products(node: Any, tensors: Mapping[str, _Tensor]) -> int:
    """Returns the multiply-adds of a convolution or a matrix product."""
    inputs = [tensors[name] for name in node.input if name]
    outputs = sum(tensors[name].values for name in node.output if name)
    if node.op_type in _CONVOLUTIONS:
        weights = inputs[3 if node.op_type == "QLinearConv" else 1]
        return outputs * math.prod(weights.shape[1:])
    transposed = any(attribute.name == "transA" and attribute.i != 0 for attribute in node.attribute)
    return outputs * inputs[0].shape[0 if transposed else -1]


def _work(node: Any, tensors: Mapping[str, _Tensor]) -> int:
    """Returns the multiply-adds that a node costs, with those that reading and writing values is worth."""
    inputs = [tensors[name] for name in node.input if name]
    outputs = sum(tensors[name].values for name in node.output if name)
    moved = _WORK_PER_VALUE * (outputs + sum(tensor.values for tensor in inputs))
    options = {attribute.name: attribute for attribute in node.attribute}
    times = 0
    if node.op_type in _PRODUCTS:
        return _products(node, tensors) + moved
    if node.op_type in ("MaxPool", "AveragePool"):
        times = math.prod(options["kernel_shape"].ints)
    elif node.op_type == "LRN":
        times = options["size"].i
    elif node.op_type == "Resize":
        times = _WORK_PER_RESIZED
    return outputs * max(times, 0) + moved
