"""The values that operations keep for the gradients: a check that a network does not change them in place."""

from __future__ import annotations

import traceback
import zlib
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdtrain.errors import KdtrainError
from kdtrain.nn.operations import Node
from kdtrain.runtime import flow
from kdtrain.runtime.user_code import Call, calls_of, with_place


class _Value(NamedTuple):
    """A tensor of OneFlow's or an array of kdtrain's, its checksum when it was kept, and the calls then."""

    value: Any
    checksum: int
    calls: list[Call]


class SavedValues:
    """The values that operations of a ``with`` block keep for the backward pass, which is part of the block.

    OneFlow has no version counter: a gradient is wrong in silence after ``y = sigmoid(x); y += z``. The
    check costs a pass over these values, so one step of a fit has it, the first one.
    """

    def __init__(self) -> None:
        self._values: list[_Value] = []

    def __enter__(self) -> SavedValues:
        hooks = flow._oneflow_internal.autograd.graph
        hooks.append_new_hooks(self._pack, self._unpack)
        Node.observer = self._add_arrays
        return self

    def __exit__(self, *error: object) -> None:
        flow._oneflow_internal.autograd.graph.pop_hooks()
        Node.observer = None
        self._values.clear()

    def check(self, loss: flow.Tensor, optimizer: flow.optim.Optimizer) -> None:
        """Raises an error if a value has changed that the gradients depend on.

        Args:
            loss: the scalar whose backward pass follows.
            optimizer: its parameters' gradients are None, and stay so.

        Raises:
            KdtrainError: the text names the layer, and the line of user code.
        """
        parameters = [p for group in optimizer.param_groups for p in group.parameters]
        for value, checksum, calls in self._values:
            if _checksum(value) != checksum and _is_needed(value, loss, parameters):
                place = with_place("the network", calls[::-1])
                raise KdtrainError(
                    f"{place}: a tensor that its gradient needs is changed in place afterwards, so the "
                    "gradient would be wrong: write `y = y + z` instead of `y += z`."
                )

    # OneFlow does not free what ``_pack`` returns, so that is a number.

    def _pack(self, tensor: flow.Tensor) -> int:
        self._add(tensor)
        return len(self._values) - 1

    def _unpack(self, number: int) -> Any:
        return self._values[number].value

    def _add_arrays(self, node: Node) -> None:
        for value in vars(node).values():
            for array in value if isinstance(value, list) else [value]:
                if isinstance(array, np.ndarray):
                    self._add(array)

    def _add(self, value: Any) -> None:
        self._values.append(_Value(value, _checksum(value), calls_of(traceback.walk_stack(None))))


def _checksum(value: Any) -> int:
    return zlib.crc32(np.ravel(_array(value), order="K").data)


def _array(value: Any) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = value.numpy() if isinstance(value, flow.Tensor) else value
    return array


def _overwrite(value: Any, numbers: npt.NDArray[Any]) -> None:
    if isinstance(value, flow.Tensor):
        value.detach().copy_(flow.tensor(numbers).to(value.device))
    else:
        value[...] = numbers


def _is_needed(value: Any, loss: flow.Tensor, parameters: list[flow.Tensor]) -> bool:
    """Returns whether gradients depend on a value: OneFlow keeps some for their shape only."""
    gradients, kept = _gradients(loss, parameters), _array(value).copy()
    if kept.dtype.kind != "f":
        return True
    _overwrite(value, np.random.default_rng(0).normal(size=kept.shape).astype(kept.dtype))
    others = _gradients(loss, parameters)
    _overwrite(value, kept)
    return not all(map(_are_equal, gradients, others))


def _gradients(loss: flow.Tensor, parameters: list[flow.Tensor]) -> list[npt.NDArray[Any] | None]:
    loss.backward(retain_graph=True)
    gradients = [None if p.grad is None else p.grad.numpy().copy() for p in parameters]
    for parameter in parameters:
        parameter.grad = None
    return gradients


def _are_equal(a: npt.NDArray[Any] | None, b: npt.NDArray[Any] | None) -> bool:
    return (a is None and b is None) or np.array_equal(a, b, equal_nan=True)  # type: ignore[arg-type]
