"""The reader of ONNX files: kdtrain's own, and image classifiers of other programs. Used in the worker only.

A file of a kilobyte can need any amount of memory and time: ``Expand`` makes gigabytes of one number. Only
the limits of the worker's process bound both. Here, files are refused that hold what no classifier needs.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from kdtrain.errors import CheckpointError, KdtrainError, one_line, size_text
from kdtrain.runtime.limits import CHANNELS, LARGEST_SIDE
from kdtrain.runtime.locations import missing_path_text
from kdtrain.runtime.regular_files import read_bytes
from kdtrain.store.card import read_card

METADATA = "kdtrain"
"""Key of a file's metadata: the model's card and more, as JSON."""

PIXELS, INPUTS, LOGITS = "pixels", "inputs", "logits"
"""Names of the graph's input and output.

The input is (N, C, H, W) float32: ``pixels`` 0..255, or ``inputs``, which are normalised. The output is
(N, classes) float32 logits.
"""

PRECISIONS = ("float32", "int8")

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

NCHW, NHWC, NHW, FLAT = "nchw", "nhwc", "nhw", "flat"
"""Orders of the values of a batch: channels first, channels last, no channels, and one row an image."""

SIZE, LAYOUT = "teacher_input_size", "teacher_layout"
"""The settings that decide what a graph leaves open."""

MOST_IN_BATCH = 1024
"""Largest batch that a graph may fix."""

_LARGEST = 2**31 - 1  # bytes of a protobuf message
_LONGEST_METADATA = 2 << 20  # characters; holds 10,000 classes with long names
_SHAPE_BYTES = 4096  # of a weight that may be a shape; the values of larger ones decide no shape
_CONVOLUTIONS = {"Conv", "ConvInteger", "QLinearConv"}
_PRODUCTS = {"MatMul", "MatMulInteger", "QLinearMatMul", "Gemm"}
_TYPES = {1: "float32", 2: "uint8", 10: "float16", 11: "float64"}  # by TensorProto.DataType
_TENSORS = ("float32", "float64", "float16")  # of an output


class GraphError(CheckpointError):
    """A graph that is refused. The text continues a sentence that begins with the file's name."""


@dataclass(frozen=True)
class Assumed:
    """The caller's answers to what a file leaves open.

    Attributes:
        channels: 1 or 3.
        height: that of the caller's images, in pixels.
        width: that of the caller's images, in pixels.
        layout: NCHW, NHWC, or "" if the graph has to tell.
        side: height and width, in pixels, that take the place of the caller's; 0: none.
    """

    channels: int
    height: int
    width: int
    layout: str = ""
    side: int = 0


@dataclass(frozen=True)
class OnnxForm:
    """The form of a file's images, and what identifies the file.

    Attributes:
        shape: channels, height, width.
        layout: NCHW, NHWC, NHW or FLAT.
        batch: the number of images that the graph takes at a time; 0: any number.
        dtype: NumPy's name of the input's type.
        images: the input's name.
        output: the output's name.
        digest: SHA-256 (hex) of the file, and of the files beside it that hold its weights.
        about: what kdtrain has noted in a file of its own; empty for other files.
        raw: whether it takes pixels 0..255; only for a file of kdtrain's.
        parameters: the number of values of its weights.
        multiply_adds: multiply-adds of its convolutions and matrix products for one image; 0 if unknown.
        left_open: SIZE, LAYOUT or both, where the graph does not tell them.
    """

    shape: tuple[int, int, int]
    layout: str
    batch: int
    dtype: str
    images: str
    output: str
    digest: str
    about: dict[str, Any]
    raw: bool
    parameters: int
    multiply_adds: int
    left_open: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns plain values, which ``OnnxForm(**values)`` takes."""
        return asdict(self)


def read_onnx(path: Path, assumed: Assumed | None = None) -> tuple[bytes, OnnxForm]:
    """Reads and checks a file; returns the graph to compute, and the form of its images.

    The graph is cut down to the output: what else the file computes, such as a label, is left out.

    Args:
        path: the file.
        assumed: decides what the file of another program leaves open; None takes kdtrain's files only.

    Raises:
        CheckpointError: the file is missing or damaged, refers to files elsewhere, is no image classifier, or
            not one of kdtrain's.
        KdtrainError: onnx is not installed.
    """
    content = _read_content(path)
    digest = hashlib.sha256(content)
    onnx = import_onnx()[0]
    model = _parse_model(onnx, content, path)
    about = _read_metadata(model, path)
    is_teacher = assumed is not None
    if about is not None or assumed is None:
        assumed = _check_own(model, about, path)
    try:
        output = _output(model)
        _prune(model, output)
        _read_weights(model, path, digest)
        _check_nodes(model)
        value = _input(model)
        shape, layout, batch, left_open = _form(value, assumed)
    except GraphError as error:
        raise CheckpointError(f"{path} {error}.") from error
    form = OnnxForm(
        shape=shape,
        layout=layout,
        batch=batch,
        dtype=_TYPES[value.type.tensor_type.elem_type],
        images=value.name,
        output=output,
        digest=digest.hexdigest(),
        about=about or {},
        raw=bool(about) and value.name == PIXELS,
        parameters=sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        multiply_adds=_multiply_adds(onnx, model, value, batch or 1) if is_teacher else 0,
        left_open=() if about else left_open,
    )
    return model.SerializeToString(), form


def import_onnx() -> tuple[Any, Any]:
    """Returns the modules onnx and onnxruntime.

    Raises:
        KdtrainError: they are not installed; the text names the command that installs them.
    """
    try:
        return importlib.import_module("onnx"), importlib.import_module("onnxruntime")
    except ImportError as error:
        raise KdtrainError(
            f"ONNX files need onnx and onnxruntime, which are not installed ({error}): "
            "install them with `pip install 'kdtrain[onnx]'`."
        ) from error


def is_out_of_memory(error: Exception) -> bool:
    """Returns whether an exception of onnx or onnxruntime says that memory does not suffice."""
    text = str(error)
    return isinstance(error, MemoryError) or "bad_alloc" in text or "Failed to allocate memory" in text


def reason(error: Exception) -> str:
    """Returns the message of an exception of onnx or onnxruntime, as one line without a full stop."""
    return "it needs more memory than is allowed" if is_out_of_memory(error) else one_line(error)


def _parse_model(onnx: Any, content: bytes, path: Path) -> Any:
    """Returns the ``ModelProto`` in a file's bytes; raises CheckpointError if there is none."""
    try:
        return onnx.load_model_from_string(content)
    except Exception as error:  # protobuf and onnx raise several types
        raise CheckpointError(f"{path} is not an ONNX file, or it is damaged: {reason(error)}.") from error


def _read_content(path: Path) -> bytes:
    """Returns a file's bytes; raises CheckpointError if it cannot be read, or is too large."""
    try:
        return read_bytes(path, _LARGEST)
    except FileNotFoundError:
        raise CheckpointError(f"there is no model {missing_path_text(path)}.") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from error


def _read_metadata(model: Any, path: Path) -> dict[str, Any] | None:
    """Returns what kdtrain has noted in a file; None if kdtrain did not write it."""
    texts = [entry.value for entry in model.metadata_props if entry.key == METADATA]
    if not texts or len(texts) > 1 or len(texts[0]) > _LONGEST_METADATA:
        return None
    try:
        about = json.loads(texts[0])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged: its metadata are not JSON: {error}.") from error
    return about if isinstance(about, dict) else {}


def _check_own(model: Any, about: dict[str, Any] | None, path: Path) -> Assumed:
    """Checks metadata, input and output of a file of kdtrain's; returns the form of its images.

    Raises:
        CheckpointError: kdtrain did not write it, or it is damaged.
    """
    if about is None:
        raise CheckpointError(f"{path} is an ONNX file, but not one that kdtrain wrote.")
    card = read_card(about, path)
    if about.get("precision") not in PRECISIONS or type(about.get("parameters")) is not int:
        raise CheckpointError(f"{path}: its metadata lacks a valid precision or number of parameters.")
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [_signature(value) for value in model.graph.input if value.name not in weights]
    outputs = [_signature(value) for value in model.graph.output]
    expected = [(name, True, list(card.image_shape)) for name in (PIXELS, INPUTS)]
    if len(inputs) != 1 or inputs[0] not in expected or outputs != [(LOGITS, True, [len(card.classes)])]:
        shape = ", ".join(map(str, card.image_shape))
        raise CheckpointError(
            f"{path} is not an ONNX file that kdtrain wrote: its graph does not lead from {PIXELS} or "
            f"{INPUTS} (float32, N, {shape}) to {LOGITS} (float32, N, {len(card.classes)})."
        )
    return Assumed(*card.image_shape, layout=NCHW)


def _signature(value: Any) -> tuple[str, bool, list[int]]:
    """Returns a value's name, whether it is float32 with a symbolic batch size, and the rest of its shape."""
    tensor = value.type.tensor_type
    first, *rest = tensor.shape.dim or [None]
    any_number = first is not None and bool(first.dim_param)
    return value.name, any_number and tensor.elem_type == 1, [dimension.dim_value for dimension in rest]


def _check_nodes(model: Any) -> None:
    """Refuses nodes that could read other files, loop without end, or hide further graphs and tensors."""
    nodes = model.graph.node
    tensors = [attribute.t for node in nodes for attribute in node.attribute]
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


def _output(model: Any) -> str:
    """Returns the name of the output that holds a number for each class: the first table of floats."""
    tensors = [(value.name, value.type.tensor_type) for value in model.graph.output]
    tables: list[str] = [
        name
        for name, tensor in tensors
        if _TYPES.get(tensor.elem_type) in _TENSORS and len(tensor.shape.dim) in (0, 2)
    ]
    if not tables:
        names = ", ".join(repr(name) for name, _ in tensors)
        raise GraphError(f"is no image classifier: none of its outputs ({names}) is a table of floats")
    return tables[0]


def _prune(model: Any, output: str) -> None:
    """Removes, in place, all that the output does not need."""
    graph, needed, kept = model.graph, {output}, []
    for node in reversed(graph.node):
        if not needed.isdisjoint(node.output):
            kept.append(node)
            needed.update(node.input)
    for entries, wanted in (
        (graph.node, kept[::-1]),
        (graph.initializer, [tensor for tensor in graph.initializer if tensor.name in needed]),
        (graph.input, [value for value in graph.input if value.name in needed]),
        (graph.output, [value for value in graph.output if value.name == output]),
    ):
        copies = [type(entry).FromString(entry.SerializeToString()) for entry in wanted]
        del entries[:]
        entries.extend(copies)
    del graph.value_info[:]  # what they state is inferred anew


def _input(model: Any) -> Any:
    """Returns the graph's only input that is no weight."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in weights]
    if len(inputs) != 1:
        names = ", ".join(repr(value.name) for value in inputs) or "none"
        raise GraphError(f"is no image classifier: it should have one input, and has {names}")
    if inputs[0].type.tensor_type.elem_type not in _TYPES:
        raise GraphError(f"takes no images: its input {inputs[0].name!r} is neither floats nor bytes")
    return inputs[0]


def _form(value: Any, assumed: Assumed) -> tuple[tuple[int, int, int], str, int, tuple[str, ...]]:
    """Returns shape and layout of the images, the size of a batch (0: any), and what the graph leaves open.

    Free lengths are fixed.
    """
    dims = value.type.tensor_type.shape.dim
    lengths = [dimension.dim_value if dimension.HasField("dim_value") else 0 for dimension in dims]
    if len(lengths) not in (2, 3, 4):
        raise GraphError(
            f"takes no batches of images: its input {value.name!r} has {len(lengths)} dimensions"
        )
    batch, *rest = lengths
    if not 0 <= batch <= MOST_IN_BATCH:
        raise GraphError(f"takes batches of {batch:,} images; at most {MOST_IN_BATCH:,} are allowed")
    shape, layout, left_open = _shape(rest, assumed)
    channels, height, width = shape
    if channels not in CHANNELS or not all(1 <= side <= LARGEST_SIDE for side in (height, width)):
        raise GraphError(
            f"takes images of {size_text(shape)}: there must be 1 or 3 channels, and at most {LARGEST_SIDE} "
            "pixels in each direction"
        )
    expected = {NCHW: shape, NHWC: (height, width, channels), NHW: (height, width)}
    for dimension, length in zip(dims[1:], expected.get(layout, (height * width * channels,)), strict=True):
        dimension.dim_value = length
    if not batch:
        dims[0].dim_param = "N"
    return shape, layout, batch, left_open


def _shape(rest: list[int], assumed: Assumed) -> tuple[tuple[int, int, int], str, tuple[str, ...]]:
    """Returns shape and layout of images with the lengths ``rest``, 0 where they are free, and what is open.

    What the graph tells wins over what the caller assumes.
    """
    height, width = (assumed.side or side for side in (assumed.height, assumed.width))
    if len(rest) == 1:
        own, asked = (assumed.height, assumed.width), (height, width)
        for size in (own, asked) if rest[0] else (asked,):
            for channels in dict.fromkeys((assumed.channels, *CHANNELS)):
                if rest[0] in (0, channels * size[0] * size[1]):
                    return (channels, *size), FLAT, (SIZE,) if size != own or not rest[0] else ()
        shape = (assumed.channels, height, width)
        raise GraphError(
            f"takes rows of {rest[0]:,} values, and images of {size_text(shape)} have another number: "
            "give the size of its images with --teacher-input-size"
        )
    if len(rest) == 2:
        return (1, rest[0] or height, rest[1] or width), NHW, () if all(rest) else (SIZE,)
    first, last = rest[0] in CHANNELS, rest[2] in CHANNELS
    left_open: tuple[str, ...] = (LAYOUT,) if first == last else ()
    layout = assumed.layout if left_open else NCHW if first else NHWC
    if not layout:
        raise GraphError(
            "does not tell whether channels come first or last in its input "
            f"({', '.join(str(length or 'free') for length in rest)}): give --teacher-layout {NCHW} or {NHWC}"
        )
    channels, rows, columns = rest if layout == NCHW else (rest[2], *rest[:2])
    left_open += () if rows and columns else (SIZE,)
    return (channels or assumed.channels, rows or height, columns or width), layout, left_open


def _read_weights(model: Any, path: Path, digest: Any) -> None:
    """Puts weights that lie in files beside the model into it, in place; adds these files to the digest.

    Programs do so with large models. Only regular files in the model's own folder are read.

    Raises:
        GraphError: a weight is elsewhere, or its part of the file does not exist.
    """
    contents: dict[str, bytes] = {}
    for tensor in model.graph.initializer:
        if not (tensor.data_location or tensor.external_data):
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        name = entries.get("location", "")
        if name not in contents:
            contents[name] = _read_beside(path, name)
            digest.update(contents[name])
            if sum(map(len, contents.values())) > _LARGEST:
                raise GraphError(f"has more than {_LARGEST:,} bytes of weights")
        offset, length = int(entries.get("offset", 0)), int(entries.get("length", len(contents[name])))
        data = contents[name][offset : offset + length] if min(offset, length) >= 0 else b""
        if len(data) != length:
            raise GraphError(f"is damaged: {name} does not hold the weight {tensor.name!r}")
        tensor.raw_data, tensor.data_location = data, 0
        del tensor.external_data[:]


def _read_beside(path: Path, name: str) -> bytes:
    """Returns the content of a file of weights.

    Raises:
        GraphError: it is not in the model's folder, or cannot be read.
    """
    beside = path.parent / name
    if not name or Path(name).name != name or beside.resolve().parent != path.parent.resolve():
        raise GraphError(f"has weights in {name!r}: only files in its own folder are read")
    try:
        return read_bytes(beside, _LARGEST)
    except OSError as error:
        raise GraphError(f"has weights in {name}, which cannot be read: {error.strerror}") from error


def _multiply_adds(onnx: Any, model: Any, images: Any, batch: int) -> int:
    """Returns the multiply-adds of convolutions and matrix products for one image; 0 if shapes are unknown.

    onnx infers the shapes. It copies the graph for this, so only the shapes of large weights are in it.
    """
    graph, helper = model.graph, onnx.helper
    first = type(images).FromString(images.SerializeToString())
    first.type.tensor_type.shape.dim[0].dim_value = batch
    small = [tensor for tensor in graph.initializer if tensor.ByteSize() < _SHAPE_BYTES]
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    large = [
        helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in graph.initializer
        if tensor.ByteSize() >= _SHAPE_BYTES
    ]
    skeleton = helper.make_graph(graph.node, "graph", [first, *large], [], small)
    try:
        inferred = onnx.shape_inference.infer_shapes(
            helper.make_model(skeleton, opset_imports=model.opset_import), data_prop=True
        ).graph
    except Exception:  # onnx raises several types
        return 0
    for value in (*inferred.input, *inferred.value_info):
        shapes[value.name] = [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]
    numbers = [_products(node, shapes) for node in graph.node if node.op_type in _CONVOLUTIONS | _PRODUCTS]
    return 0 if min(numbers, default=0) <= 0 else sum(numbers) // batch


def _products(node: Any, shapes: dict[str, list[int]]) -> int:
    """Returns the multiply-adds of a convolution or a matrix product; 0 if a shape is unknown."""
    outputs = math.prod(shapes.get(node.output[0]) or [0])
    if node.op_type in _CONVOLUTIONS:
        weights = shapes.get(node.input[3 if node.op_type == "QLinearConv" else 1], [])
        return outputs * math.prod(weights[1:] or [0])
    transposed = any(attribute.name == "transA" and attribute.i != 0 for attribute in node.attribute)
    return outputs * (shapes.get(node.input[0]) or [0])[0 if transposed else -1]
