"""What a network does with its images, operation by operation, as oneflow's graph compiler sees it."""

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
"""Images in the batch that is traced; nothing is computed. Graphs have fixed shapes, and a length that
is a multiple of this prime must come from the number of images: none else in a network does."""


@dataclass(frozen=True)
class Operation:
    """One of oneflow's operations; values have names such as ``conv2d-0/out_0``."""

    kind: str
    name: str
    inputs: dict[str, list[str]]
    output: str
    attributes: dict[str, Any]

    def refused(self, why: str) -> KdtrainError:
        """Returns the error that says why it cannot be written."""
        return KdtrainError(f"the network cannot be exported: oneflow's operation {self.kind} {why}.")


@dataclass(frozen=True)
class Trace:
    """A network's operations, in an order in which they can be computed.

    Attributes:
        operations: what is computed.
        shapes: of every value, for a batch of ``BATCH`` images.
        weights: values that are parameters or buffers, by the names that they have in the network.
        images: the value that goes in.
        logits: the value that comes out.
    """

    operations: list[Operation]
    shapes: dict[str, tuple[int, ...]]
    weights: dict[str, tuple[str, npt.NDArray[np.generic]]]
    images: str
    logits: str


def trace(model: flow.nn.Module, image_shape: ImageShape) -> Trace:
    """Returns what ``model``, in evaluation mode and on the CPU, does with images (N, C, H, W).

    Raises:
        KdtrainError: it cannot be traced, because it looks at its values, say.
    """
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}

    class Graph(flow.nn.Graph):
        """Holds no module: oneflow would put a stand-in into its place, on which super() fails."""

        def build(self, images: flow.Tensor) -> flow.Tensor:
            for name, tensor in state.items():  # otherwise they get names of their own, or another graph's
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
    """Keeps away that the layers are not the graph's, and, on stdout, that building it has failed."""
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
            raise KdtrainError(f"the network cannot be exported: its graph has a {kind} in it.")
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
    """Returns an attribute as a number, a text, or a list of numbers."""
    inner = getattr(value, value.WhichOneof("value"))
    for field in ("val", "dim"):
        if hasattr(inner, field):
            return list(getattr(inner, field))
    return inner
