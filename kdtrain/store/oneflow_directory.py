"""Reads what ``oneflow.save(model.state_dict(), directory)`` wrote, and runs none of it.

OneFlow writes the names as a pickle and each tensor as a folder with raw values and a description.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.errors import CheckpointError

_MAX_PICKLE = 16 * 1024 * 1024
_TYPE_NAMES = {
    "kFloat": "float32",
    "kDouble": "float64",
    "kInt8": "int8",
    "kInt32": "int32",
    "kInt64": "int64",
    "kUInt8": "uint8",
    "kBool": "bool",
}


class _TensorReference:
    """Stands in for oneflow's tensor class: only remembers which folder holds the values."""

    def __init__(self) -> None:
        self.folder = ""

    def __setstate__(self, state: object) -> None:
        if not (isinstance(state, dict) and re.fullmatch(r"tensor_\d+", str(state.get("path", "")))):
            raise pickle.UnpicklingError("a tensor without a folder of its own")
        self.folder = str(state["path"])


_ADMITTED: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("oneflow.nn", "Parameter"): _TensorReference,
    ("oneflow", "Tensor"): _TensorReference,
    ("oneflow._oneflow_internal", "Tensor"): _TensorReference,
}


class _Unpickler(pickle.Unpickler):
    """Admits the two classes that a saved state dict is made of, and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no state dict needs") from None


def read_oneflow_directory(directory: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Returns the tensors of a saved state dict by name.

    Raises:
        CheckpointError: it is not such a directory, is damaged, or asks for code to be run.
    """
    names = directory / "pickled_data"
    try:
        if names.stat().st_size > _MAX_PICKLE:
            raise CheckpointError(f"{names} is far larger than a list of tensor names can be.")
        with names.open("rb") as file:
            content = _Unpickler(file).load()
    except FileNotFoundError:
        raise CheckpointError(
            f"{directory} is not a checkpoint: a directory written by oneflow.save has a file pickled_data."
        ) from None
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle raises almost anything
        raise CheckpointError(f"{names} was refused: {error}.") from error
    state = content.get("data") if isinstance(content, dict) else None
    if not isinstance(state, dict) or not all(
        isinstance(value, _TensorReference) for value in state.values()
    ):
        raise CheckpointError(f"{directory} does not hold a model's state dict.")
    return {str(name): _read_tensor(directory / reference.folder) for name, reference in state.items()}


def _read_tensor(folder: Path) -> npt.NDArray[np.generic]:
    try:
        description = (folder / "meta").read_text(encoding="utf-8")
        values = (folder / "out").read_bytes()
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"the tensor in {folder} cannot be read: {error}.") from error
    shape = tuple(int(size) for size in re.findall(r"\bdim:\s*(\d+)", description))
    dtype = re.search(r"\bdata_type:\s*(\w+)", description)
    if dtype is None or dtype[1] not in _TYPE_NAMES:
        raise CheckpointError(f"{folder / 'meta'} names no data type that weights can have.")
    kind = np.dtype(_TYPE_NAMES[dtype[1]])
    if len(values) != kind.itemsize * int(np.prod(shape, dtype=object)):
        raise CheckpointError(
            f"{folder / 'out'} holds {len(values)} bytes, which does not fit the shape {shape}."
        )
    return np.frombuffer(values, dtype=kind).reshape(shape)
