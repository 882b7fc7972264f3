"""The reader of image classifiers in ONNX files that other programs wrote. Used in the worker only.

Such a file has no card. Its graph tells the form of its images; what it leaves open, the caller decides.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from kdtrain.deploy.onnx.cost import Cost, GraphError, graph_cost
from kdtrain.deploy.onnx.reader import (
    LARGEST,
    METADATA,
    PIXELS,
    import_onnx,
    parse_model,
    read_content,
    read_metadata,
)
from kdtrain.errors import CheckpointError, size_text
from kdtrain.runtime.limits import CHANNELS, LARGEST_SIDE
from kdtrain.runtime.regular_files import read_bytes

NCHW, NHWC, NHW, FLAT = "nchw", "nhwc", "nhw", "flat"
"""Orders of the values of a batch: channels first, channels last, no channels, and one row an image."""

LAYOUTS = (NCHW, NHWC)
"""Values of --teacher-layout. The graph tells the others apart."""

SIZE, LAYOUT = "teacher_input_size", "teacher_layout"
"""The settings that decide what a graph leaves open."""

MOST_IN_BATCH = 1024
"""Largest batch that a graph may fix."""

_TYPES = {1: "float32", 2: "uint8", 10: "float16", 11: "float64"}  # by TensorProto.DataType
_TENSORS = ("float32", "float64", "float16")  # of an output


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
class ClassifierForm:
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
        multiply_adds: multiply-adds of its convolutions and matrix products for one image.
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
        """Returns plain values, which ``ClassifierForm(**values)`` takes."""
        return asdict(self)


def read_classifier(path: Path, assumed: Assumed) -> tuple[bytes, ClassifierForm, Cost]:
    """Reads and checks a file; returns the graph to compute, the form of its images, and its cost.

    The graph is cut down to the output: what else the file computes, such as a label, is left out.

    Args:
        path: the file.
        assumed: decides what the file leaves open.

    Raises:
        CheckpointError: the file is missing or damaged, refers to files elsewhere, is no image classifier, or
            needs more memory or time than the limits.
        KdtrainError: onnx is not installed.
    """
    content = read_content(path)
    digest = hashlib.sha256(content)
    onnx = import_onnx()[0]
    model = parse_model(onnx, content, path)
    about = read_metadata(model, path) if any(m.key == METADATA for m in model.metadata_props) else {}
    try:
        output = _output(model)
        _prune(model, output)
        _read_weights(model, path, digest)
        value = _input(model)
        if about:  # kdtrain's files leave nothing open
            assumed = replace(assumed, layout=NCHW, side=0)
        shape, layout, batch, left_open = _form(value, assumed)
        pixels = shape[1] * shape[2]
        cost = graph_cost(onnx, model, value.name, pixels, batch or 1)
    except GraphError as error:
        raise CheckpointError(f"{path} {error}.") from error
    if not batch:
        value.type.tensor_type.shape.dim[0].dim_param = "N"  # the cost was that of one image
    form = ClassifierForm(
        shape=shape,
        layout=layout,
        batch=batch,
        dtype=_TYPES[value.type.tensor_type.elem_type],
        images=value.name,
        output=output,
        digest=digest.hexdigest(),
        about=about,
        raw=bool(about) and value.name == PIXELS,
        parameters=sum(math.prod(tensor.dims) for tensor in model.graph.initializer),
        multiply_adds=cost.multiply_adds,
        left_open=() if about else left_open,
    )
    return model.SerializeToString(), form, cost


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
            if sum(map(len, contents.values())) > LARGEST:
                raise GraphError(f"has more than {LARGEST:,} bytes of weights")
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
        return read_bytes(beside, LARGEST)
    except OSError as error:
        raise GraphError(f"has weights in {name}, which cannot be read: {error.strerror}") from error
