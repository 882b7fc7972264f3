"""What a fit needs to go on where it was: everything that ``last.safetensors`` holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdtrain.engine.events import EpochEnd
from kdtrain.errors import CheckpointError
from kdtrain.runtime import flow
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import Weights, load_tensors, load_weights, save_tensors, snapshot

_AN_END = EpochEnd(1, 1, {}, 1, 1.0, 1.0, 1.0)  # for the types of its fields


@dataclass(frozen=True)
class FitState:
    """A fit between two epochs.

    Attributes:
        source: the file that it was read from.
        tensors: those of the model, of terms with parameters and of the optimizer, by name.
        optimizer: the optimizer's plain values.
        callbacks: every callback's ``state_dict``, by callback.
        data: fingerprint of the training images.
        end: how the last finished epoch ended.
    """

    source: Path
    tensors: Weights
    optimizer: dict[str, Any]
    callbacks: dict[str, dict[str, Any]]
    data: str
    end: EpochEnd

    def restore(self, modules: Iterable[flow.nn.Module], optimizer: flow.optim.Optimizer) -> None:
        """Puts the weights into the network and the terms, and the state into the optimizer.

        Raises:
            CheckpointError: they are not those of this file.
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
        """Checks everything first: oneflow would read beyond a tensor that is too short."""
        parameters = [p for group in optimizer.param_groups for p in group.parameters]
        state: dict[Any, Any] = {index: {} for index in range(len(parameters))}
        for name, array in self._part("optimizer/").items():
            index, _, key = name.partition("/")
            shape = tuple(dict(enumerate(parameters))[int(index)].shape)
            if array.shape != shape or array.dtype != np.float32:
                raise ValueError(f"{name} has the shape {array.shape} ({array.dtype}), its parameter {shape}")
            # A copy, because oneflow keeps these very tensors as the live state.
            state[int(index)][key] = flow.tensor(np.array(array, order="C"))
        made, _ = flatten_optimizer(optimizer)  # some optimizers begin with tensors, others make them later
        names = {name.rpartition("/")[2] for name in made}.union(*state.values())
        for number, kept in state.items():  # of a parameter that got no gradient there is nothing
            if (kept or made) and (missing := names - kept.keys()):
                raise ValueError(f"{number}/{min(missing)} is missing")
        state["step"] = _checked("step", self.optimizer["step"], 0)
        groups = optimizer.state_dict()["param_groups"]
        for group, options in zip(groups, self.optimizer["param_groups"], strict=True):
            own = group["_options"]
            group["_options"] = {name: _checked(name, options[name], value) for name, value in own.items()}
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def _part(self, prefix: str) -> Weights:
        found = {name: array for name, array in self.tensors.items() if name.startswith(prefix)}
        return {name.removeprefix(prefix): array for name, array in found.items()}


def save_state(
    path: Path,
    card: ModelCard,
    modules: Iterable[flow.nn.Module],
    optimizer: flow.optim.Optimizer,
    callbacks: Mapping[str, dict[str, Any]],
    data: str,
    end: EpochEnd,
) -> None:
    """Writes the state of a fit, with its model's card so that it serves as a checkpoint as well."""
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
    """Reads what ``save_state`` has written.

    Raises:
        CheckpointError: the file is missing, damaged, or no state of a fit.
    """
    tensors, header = load_tensors(path)
    try:
        end = {name: _checked(name, header["end"][name], value) for name, value in vars(_AN_END).items()}
        optimizer, callbacks = (_checked(name, header[name], {}) for name in ("optimizer", "callbacks"))
        callbacks = {name: _checked(name, state, {}) for name, state in callbacks.items()}
        data = _checked("data", header["data"], "")
        for name, value in end["metrics"].items():
            if type(value) not in (int, float):
                raise ValueError(f"{name} is {value!r}")
        return FitState(path, tensors, optimizer, callbacks, data, EpochEnd(**end))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} does not hold the state of a fit: {error}.") from error


def flatten_optimizer(optimizer: flow.optim.Optimizer) -> tuple[Weights, dict[str, Any]]:
    """Returns the optimizer's state as tensors by name, and as plain values.

    The tensors are copies: those in oneflow's ``state_dict`` are the live ones, which the next step
    changes.
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


def _checked(name: str, value: Any, like: Any) -> Any:
    """Returns ``value`` if it is of the same kind as ``like``, as it comes back from JSON.

    Raises:
        ValueError: it is not, or it is a number that cannot be.
    """
    if isinstance(like, (tuple, list)):
        if not isinstance(value, list) or len(value) != len(like):
            raise ValueError(f"{name} is {value!r}")
        return type(like)(_checked(name, item, one) for item, one in zip(value, like, strict=True))
    number = isinstance(like, float) and isinstance(value, int) and not isinstance(value, bool)
    if not number and type(value) is not type(like):
        raise ValueError(f"{name} is {value!r}")
    if isinstance(like, (int, float)) and not 0 <= value < 2**63:
        raise ValueError(f"{name} is {value!r}")
    return value


def _prefixes() -> Iterable[str]:
    """Yields where each module's tensors are: the network's, then those of terms in their order."""
    yield "model/"
    number = 0
    while True:
        yield f"term/{number}/"
        number += 1
