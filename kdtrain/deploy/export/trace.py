"""The trace of a network: its operations, as oneflow's graph compiler records them."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.errors import KdtrainError, one_line
from kdtrain.models.networks import ImageShape
from kdtrain.runtime import flow
from kdtrain.runtime.user_code import with_source_line

BATCH = 1009
"""Number of images in the traced batch, of which nothing is computed.

A graph has fixed shapes. A length that is a multiple of this prime derives from the number of images,
because no other length in a network is.
"""


@dataclass(frozen=True)
class Operation:
    """An operation of oneflow's. Its inputs and output are names of values, such as ``conv2d-0/out_0``."""

    kind: str
    name: str
    inputs: dict[str, list[str]]
    output: str
    attributes: dict[str, Any]

    def refused(self, why: str) -> KdtrainError:
        """Returns the error that names the operation and the reason why it has no translation."""
        return KdtrainError(f"the network cannot be exported: oneflow's operation {self.kind} {why}.")


@dataclass(frozen=True)
class Trace:
    """A network's operations.

    Attributes:
        operations: the operations in the order of computation.
        shapes: the shape of every value, for a batch of ``BATCH`` images.
        weights: parameters and buffers: the name in the network and the array, by the value's name.
        images: the input value.
        logits: the output value.
    """

    operations: list[Operation]
    shapes: dict[str, tuple[int, ...]]
    weights: dict[str, tuple[str, npt.NDArray[np.generic]]]
    images: str
    logits: str


def trace(model: flow.nn.Module, image_shape: ImageShape) -> Trace:
    """Returns the trace of a network.

    Args:
        model: the network, in evaluation mode, on the CPU.
        image_shape: (C, H, W).

    Raises:
        KdtrainError: it cannot be traced, for instance because its control flow depends on values.
    """
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    class Graph(flow.nn.Graph):
        """A graph without modules: oneflow replaces a graph's modules by proxies, on which super() fails."""

        def build(self, images: flow.Tensor) -> flow.Tensor:
            for name, tensor in state.items():  # without this, names are generated, or are another graph's
                flow.framework.graph_build_util.build_graph_state(name, tensor, None)
            return model(images)

    try:
        with _without_noise(), flow.no_grad():
            job, _ = Graph().build_graph(flow.zeros(BATCH, *image_shape))
    except Exception as error:
        what = with_source_line("the network cannot be exported, because it cannot be traced", error)
        raise KdtrainError(f"{what}: {one_line(error)}.") from error
    return _read(job, {name: tensor.numpy().copy() for name, tensor in state.items()})


@contextlib.contextmanager
def _without_noise() -> Iterator[None]:
    """Suppresses the warning about layers outside the graph, and oneflow's error report on stdout."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".* not registered into a nn.Graph")
        yield


def _read(job: Any, state: dict[str, npt.NDArray[np.generic]]) -> Trace:
    operations, weights, images, logits = [], {}, "", ""
    for node in job.net.op:
        kind = node.WhichOneof("op_type")
        if kind == "user_conf":
            operations.append(_operation(node))
        elif kind == "variable_conf":
            if node.name not in state:
                raise KdtrainError(
                    "the network cannot be exported: it uses a tensor that is neither a parameter nor a "
                    "buffer; register it with register_buffer."
                )
            weights[f"{node.name}/out"] = (node.name, state[node.name])
        elif kind == "input_conf":
            images = f"{node.name}/out"
        elif kind == "output_conf":
            logits = getattr(node.output_conf, "in")
        else:
            raise KdtrainError(f"the network cannot be exported: its graph contains a {kind}.")
    described = job.helper.lbn2logical_blob_desc.items()
    shapes = {name: tuple(value.shape.dim) for name, value in described}
    return Trace(operations, shapes, weights, images, logits)


def _operation(node: Any) -> Operation:
    conf = node.user_conf
    return Operation(
        kind=conf.op_type_name,
        name=node.name,
        inputs={name: list(values.s) for name, values in conf.input.items()},
        output=conf.output[conf.output_order[0]].s[0],
        attributes={name: _plain(value) for name, value in conf.attr.items()},
    )


def _plain(value: Any) -> Any:
    """Returns an attribute as a number, a string, or a list of numbers."""
    inner = getattr(value, value.WhichOneof("value"))
    for field in ("val", "dim"):
        if hasattr(inner, field):
            return list(getattr(inner, field))
    return inner
