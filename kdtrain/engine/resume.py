"""The state of a fit between two epochs, as ``last.safetensors`` holds it: writing, reading, restoring."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from kdtrain.engine.events import EpochEnd
from kdtrain.errors import CheckpointError
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import Weights, load_tensors, load_weights, save_tensors, snapshot

_EXAMPLE = EpochEnd(1, 1, {}, 1, 1.0, 1.0, 1.0)  # for the types of its fields


@dataclass(frozen=True)
class FitState:
    """A fit between two epochs.

    Attributes:
        source: the file that the state was read from.
        tensors: the tensors of the model, of terms with parameters and of the optimizer, by name.
        optimizer: the optimizer's plain values: its step and its parameter groups.
        callbacks: every callback's ``state_dict`` by the callback's name.
        data: fingerprint of the training images.
        end: the end of the last finished epoch.
    """

    source: Path
    tensors: Weights
    optimizer: dict[str, Any]
    callbacks: dict[str, dict[str, Any]]
    data: str
    end: EpochEnd

    def restore(self, modules: Iterable[flow.nn.Module], optimizer: flow.optim.Optimizer) -> None:
        """Restores the weights of the network and the terms, and the state of the optimizer.

        Args:
            modules: the network, and the terms with parameters, in the order of ``save_state``.
            optimizer: the optimizer of their parameters.

        Raises:
            CheckpointError: the file holds the state of other modules or of another optimizer.
        """
        for prefix, module in zip(_prefixes(), modules, strict=False):
            load_weights(module, self._part(prefix), str(self.source))
        try:
            self._restore_optimizer(optimizer)
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"{self.source} does not hold the state of this optimizer: {error}."
            ) from error

    def _restore_optimizer(self, optimizer: flow.optim.Optimizer) -> None:
        """Restores the optimizer. All shapes are checked first: OneFlow reads beyond a short tensor."""
        parameters = [p for group in optimizer.param_groups for p in group.parameters]
        state: dict[Any, Any] = {index: {} for index in range(len(parameters))}
        for name, array in self._part("optimizer/").items():
            index, _, key = name.partition("/")
            shape = tuple(dict(enumerate(parameters))[int(index)].shape)
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"{name} has the shape {array.shape} ({array.dtype}), its parameter {shape}")
            # Copied, because OneFlow keeps these tensors as the live state.
            state[int(index)][key] = flow.tensor(np.array(array, order="C"))
        initial, _ = flatten_optimizer(optimizer)  # empty for optimizers that make tensors at the first step
        names = {name.rpartition("/")[2] for name in initial}.union(*state.values())
        for number, entry in state.items():  # empty for a parameter that never got a gradient
            if (entry or initial) and (missing := names - entry.keys()):
                raise ValueError(f"{number}/{min(missing)} is missing")
        state["step"] = _checked("step", self.optimizer["step"], 0)
        groups = optimizer.state_dict()["param_groups"]
        for group, options in zip(groups, self.optimizer["param_groups"], strict=True):
            current = group["_options"].items()
            group["_options"] = {name: _checked(name, options[name], value) for name, value in current}
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _part(self, prefix: str) -> Weights:
        """Returns the tensors whose names begin with ``prefix``, by the rest of the name."""
        return {
            name.removeprefix(prefix): array
            for name, array in self.tensors.items()
            if name.startswith(prefix)
        }


def save_state(
    path: Path,
    card: ModelCard,
    modules: Iterable[flow.nn.Module],
    optimizer: flow.optim.Optimizer,
    callbacks: Mapping[str, dict[str, Any]],
    data: str,
    end: EpochEnd,
) -> None:
    """Writes the state of a fit. The model's card makes the file a checkpoint as well.

    Args:
        path: the file.
        card: describes the model.
        modules: the network, then the terms with parameters.
        optimizer: the optimizer of their parameters.
        callbacks: every callback's ``state_dict`` by the callback's name.
        data: fingerprint of the training images.
        end: the end of the last finished epoch.
    """
    tensors, values = flatten_optimizer(optimizer)
    for prefix, module in zip(_prefixes(), modules, strict=False):
        tensors |= {f"{prefix}{name}": array for name, array in snapshot(module).items()}
    header = {
        "model": asdict(card),
        "optimizer": values,
        "callbacks": callbacks,
        "data": data,
        "end": {**vars(end), "metrics": dict(end.metrics)},
    }
    save_tensors(path, tensors, header)


def load_state(path: Path) -> FitState:
    """Reads a file that ``save_state`` has written.

    Raises:
        CheckpointError: the file is missing, damaged, or does not hold the state of a fit.
    """
    tensors, header = load_tensors(path)
    try:
        end = {name: _checked(name, header["end"][name], value) for name, value in vars(_EXAMPLE).items()}
        optimizer = _checked("optimizer", header["optimizer"], {})
        states = _checked("callbacks", header["callbacks"], {})
        callbacks = {name: _checked(name, state, {}) for name, state in states.items()}
        data = _checked("data", header["data"], "")
        for name, value in end["metrics"].items():
            if type(value) not in (int, float):
                raise ValueError(f"{name} is {value!r}")
        end["metrics"] = MappingProxyType(end["metrics"])
        return FitState(path, tensors, optimizer, callbacks, data, EpochEnd(**end))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not hold the state of a fit: {error}.") from error


def flatten_optimizer(optimizer: flow.optim.Optimizer) -> tuple[Weights, dict[str, Any]]:
    """Returns an optimizer's state.

    The arrays are copies, because those of OneFlow's ``state_dict`` are views of the live state.

    Returns:
        The arrays by name, ``optimizer/NUMBER/NAME`` with the number of the parameter, each of the
        parameter's shape and float32; and the step and the parameter groups as plain values.
    """
    state = optimizer.state_dict()
    tensors: Weights = {
        f"optimizer/{index}/{name}": tensor.numpy().copy()
        for index, entry in state["state"].items()
        if isinstance(entry, dict)
        for name, tensor in entry.items()
    }
    groups = [{**group["_options"], "params": group["params"]} for group in state["param_groups"]]
    return tensors, {"step": int(np.asarray(state["state"].get("step", 0))), "param_groups": groups}


def _checked(name: str, value: Any, example: Any) -> Any:
    """Returns ``value``, read from JSON, if it has the type of ``example``.

    Raises:
        ValueError: it has another type, or is a number out of range.
    """
    if isinstance(example, (tuple, list)):
        if not isinstance(value, list) or len(value) != len(example):
            raise ValueError(f"{name} is {value!r}")
        return type(example)(_checked(name, *pair) for pair in zip(value, example, strict=True))
    whole = isinstance(example, float) and isinstance(value, int) and not isinstance(value, bool)
    if not whole and type(value) is not type(example):
        raise ValueError(f"{name} is {value!r}")
    if isinstance(example, (int, float)) and not 0 <= value < 2**63:
        raise ValueError(f"{name} is {value!r}")
    return value


def _prefixes() -> Iterable[str]:
    """Yields the prefix of each module's tensors: the network's, then the terms' in their order."""
    yield "model/"
    number = 0
    while True:
        yield f"term/{number}/"
        number += 1
