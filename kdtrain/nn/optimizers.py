"""OneFlow's optimizers, whose steps on a CPU are passes of NumPy over the numbers of all parameters at once.

OneFlow's own make one operation for each parameter, which costs more than the arithmetic, and its kernels
compute one number after another. The state has the names and the shapes of OneFlow's, one tensor for each
parameter, so that checkpoints are the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kdtrain.nn.operations import small_in_numpy
from kdtrain.runtime import flow

Array = npt.NDArray[np.float32]

_BLOCK = 1 << 15  # numbers: those of all arrays of a pass fit a core's cache together


class _Flat:
    """Gradients, changes and state of some parameters: of each kind, all numbers in one array.

    Args:
        parameters: those with a gradient; float32, on the CPU.
        names: the names of the state's tensors.
        state: OneFlow's state by parameter; its tensors become views of the arrays.
    """

    def __init__(self, parameters: Sequence[flow.Tensor], names: Sequence[str], state: Any) -> None:
        self.parameters = parameters
        ends = np.cumsum([parameter.numel() for parameter in parameters]).tolist()
        self._parts = [slice(*bounds) for bounds in zip([0, *ends], ends, strict=False)]
        self.gradient, self.change, *arrays = (np.zeros(ends[-1], np.float32) for _ in range(2 + len(names)))
        self.state = dict(zip(names, arrays, strict=True))
        self._gradients, self._changes = self._views(self.gradient), self._views(self.change)
        self._tensors = []
        for name, array in self.state.items():
            for parameter, view in zip(parameters, self._views(array), strict=True):
                if name in state[parameter]:
                    view[...] = state[parameter][name].numpy()
                tensor = state[parameter][name] = flow.from_numpy(view)
                self._tensors.append((state[parameter], name, tensor))

    def _views(self, array: Array) -> list[Array]:
        """Returns the part of each parameter, in its shape."""
        shapes = (tuple(parameter.shape) for parameter in self.parameters)
        return [array[part].reshape(shape) for part, shape in zip(self._parts, shapes, strict=True)]

    def is_of(self, parameters: Sequence[flow.Tensor]) -> bool:
        """Returns whether the arrays are those of these parameters and of their present state."""
        same = len(parameters) == len(self.parameters) and all(map(_are_one, parameters, self.parameters))
        return same and all(entry.get(name) is tensor for entry, name, tensor in self._tensors)

    def gather(self) -> None:
        """Copies the gradients into their array."""
        for view, parameter in zip(self._gradients, self.parameters, strict=True):
            view[...] = parameter.grad.to_numpy()

    def subtract(self) -> None:
        """Takes the changes away from the parameters."""
        for view, parameter in zip(self._changes, self.parameters, strict=True):
            numbers = parameter.to_numpy()  # a view of its memory
            np.subtract(numbers, view, out=numbers)


def _are_one(first: object, second: object) -> bool:
    return first is second


class _FlatOptimizer:
    """A base class beside an optimizer of OneFlow's: carries out the step of a group of parameters."""

    state_names: ClassVar[tuple[str, ...]]
    _state: dict[Any, Any]

    def _flat_step(self, group: Any) -> bool:
        """Makes the step of a group, unless it has to be OneFlow's own; returns whether it was made."""
        parameters = [parameter for parameter in group.parameters if parameter.grad is not None]
        if not parameters:
            return True
        if not self._is_plain(group) or not all(
            small_in_numpy(parameter) and parameter.dtype == flow.float32 for parameter in parameters
        ):
            return False
        kept: dict[int, _Flat] = self.__dict__.setdefault("_flat", {})
        flat = kept.get(id(group))
        if flat is None or not flat.is_of(parameters):
            flat = kept[id(group)] = _Flat(parameters, self.state_names, self._state)
        flat.gather()
        arrays = flat.gradient, flat.change, *flat.state.values()
        rates = self._rates(group)
        scratch = np.empty(min(_BLOCK, len(flat.gradient)), np.float32)
        with np.errstate(all="ignore"):  # a number that is not finite shows in the next loss
            for start in range(0, len(flat.gradient), _BLOCK):
                block = [array[start : start + _BLOCK] for array in arrays]
                self._change(*block, scratch[: len(block[0])], *rates)
            flat.subtract()
        return True

    def _is_plain(self, group: Any) -> bool:
        """Returns whether the group's options are those that ``_change`` knows."""
        raise NotImplementedError

    def _rates(self, group: Any) -> tuple[float, ...]:
        """Returns the numbers of a step that ``_change`` takes."""
        raise NotImplementedError

    @staticmethod
    def _change(*arguments: Any) -> None:
        """Computes the change of some numbers and their new state, in place.

        Args:
            arguments: gradient; change, which is filled; the state's arrays; an array to compute in; rates.
        """
        raise NotImplementedError


class Adam(_FlatOptimizer, flow.optim.Adam):
    """OneFlow's Adam (Kingma, Ba 2015, algorithm 1)."""

    state_names = ("exp_avg", "exp_avg_sq")

    def _single_tensor_update(self, param_group: Any) -> None:
        if not self._flat_step(param_group):
            super()._single_tensor_update(param_group)

    def _is_plain(self, group: Any) -> bool:
        return not (group["amsgrad"] or group["weight_decay"])

    def _rates(self, group: Any) -> tuple[float, ...]:
        corrects = group["do_bias_correction"]
        first, second = (group[f"bias_correction{n}"] if corrects else 1.0 for n in (1, 2))
        return (
            *(1.0 - beta for beta in group["betas"]),
            float(group["lr"]) * math.sqrt(second) / first,
            group["eps"] * math.sqrt(second),
        )

    @staticmethod
    def _change(
        gradient: Array,
        change: Array,
        mean: Array,
        square: Array,
        scratch: Array,
        new: float,
        new_square: float,
        rate: float,
        epsilon: float,
    ) -> None:
        np.subtract(gradient, mean, out=change)
        change *= new
        mean += change
        np.multiply(gradient, gradient, out=scratch)
        scratch -= square
        scratch *= new_square
        square += scratch
        np.sqrt(square, out=scratch)
        scratch += epsilon
        np.divide(mean, scratch, out=change)
        change *= rate


class SGD(_FlatOptimizer, flow.optim.SGD):
    """OneFlow's stochastic gradient descent with momentum."""

    state_names = ("momentum_buf",)

    def _single_tensor_update(self, param_group: Any) -> None:
        if not self._flat_step(param_group):
            super()._single_tensor_update(param_group)

    def _is_plain(self, group: Any) -> bool:
        return bool(group["momentum"]) and not any(
            group[name] for name in ("weight_decay", "dampening", "nesterov", "maximize")
        )

    def _rates(self, group: Any) -> tuple[float, ...]:
        return float(group["momentum"]), float(group["lr"])

    @staticmethod
    def _change(
        gradient: Array, change: Array, momentum: Array, scratch: Array, kept: float, rate: float
    ) -> None:
        momentum *= kept
        momentum += gradient
        np.multiply(momentum, rate, out=change)


class Adadelta(_FlatOptimizer, flow.optim.Adadelta):
    """OneFlow's Adadelta (Zeiler 2012, algorithm 1)."""

    state_names = ("square_avgs", "acc_deltas")

    def step(self, closure: Any = None) -> Any:
        """Makes a step, as in OneFlow's."""
        groups = self.param_groups
        with flow.no_grad():
            loss = None if closure is None else closure()
            done = [self._flat_step(group) for group in groups]
        if not any(done):
            super().step()
            return loss
        assert all(done), "the parameters are on one device"
        self._state["step"] = self._state["step"] + 1
        return loss

    def _is_plain(self, group: Any) -> bool:
        return not (group["weight_decay"] or group["maximize"])

    def _rates(self, group: Any) -> tuple[float, ...]:
        return float(group["rho"]), float(group["eps"]), float(group["lr"])

    @staticmethod
    def _change(
        gradient: Array,
        change: Array,
        square: Array,
        moved: Array,
        scratch: Array,
        kept: float,
        epsilon: float,
        rate: float,
    ) -> None:
        np.multiply(gradient, gradient, out=scratch)
        scratch *= 1.0 - kept
        square *= kept
        square += scratch
        np.add(moved, epsilon, out=change)
        np.add(square, epsilon, out=scratch)
        change /= scratch
        np.sqrt(change, out=change)
        change *= gradient
        np.multiply(change, change, out=scratch)
        scratch *= 1.0 - kept
        moved *= kept
        moved += scratch
        change *= rate
