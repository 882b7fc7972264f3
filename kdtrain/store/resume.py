"""What a fit needs to go on where it was: everything that ``last.safetensors`` holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from kdtrain.errors import CheckpointError
from kdtrain.events import EpochEnd
from kdtrain.runtime import flow
from kdtrain.store.checkpoint import ModelCard, Weights, load_tensors, load_weights, save_tensors, snapshot


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
        state: dict[Any, Any] = {"step": self.optimizer["step"]}
        for name, array in self._part("optimizer/").items():
            index, _, key = name.partition("/")
            # A copy, because oneflow keeps these very tensors as the live state.
            state.setdefault(int(index), {})[key] = flow.tensor(np.array(array, order="C"))
        own = optimizer.state_dict()["param_groups"]
        groups = [
            {**group, "_options": {k: v for k, v in options.items() if k != "params"}}
            for group, options in zip(own, self.optimizer["param_groups"], strict=True)
        ]
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
        end = EpochEnd(**header["end"])
        return FitState(path, tensors, header["optimizer"], header["callbacks"], header["data"], end)
    except (KeyError, TypeError) as error:
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


def _prefixes() -> Iterable[str]:
    """Yields where each module's tensors are: the network's, then those of terms in their order."""
    yield "model/"
    number = 0
    while True:
        yield f"term/{number}/"
        number += 1
