"""Reader of directories that ``oneflow.save(model.state_dict(), directory)`` wrote; it runs no code.

OneFlow writes the names as a pickle, and each tensor as a folder with raw values and a description.
"""

from __future__ import annotations

import io
import math
import os
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.errors import CheckpointError, os_reason
from kdtrain.runtime.regular_files import read_bytes

_MAX_PICKLE = 1024 * 1024  # bytes
_MAX_META = 4096  # bytes
_TYPE_NAMES = {
    "kFloat": "float32",
    "kDouble": "float64",
    "kInt8": "int8",
    "kInt32": "int32",
    "kInt64": "int64",
    "kUInt8": "uint8",
    "kBool": "bool",
}

# The opcodes of a pickled state dict, in any protocol from 2 on. The others could not run code either,
# but some make a short file fill the memory.
_OPCODES = re.compile(
    "PROTO|FRAME|STOP|MARK|MEMOIZE|(LONG_)?BIN(PUT|GET)|BININT1|(SHORT_)?BINUNICODE|"
    "EMPTY_(DICT|TUPLE)|(STACK_)?GLOBAL|REDUCE|NEWOBJ|BUILD|SETITEMS?"
)


class _TensorReference:
    """Replaces OneFlow's tensor class; holds the name of the folder with the values."""

    folder = ""

    def __setstate__(self, state: object) -> None:
        path = state.get("path") if isinstance(state, dict) else None
        if not (isinstance(path, str) and re.fullmatch(r"tensor_\d+", path)):
            raise pickle.UnpicklingError("a tensor without a folder of its own")
        self.folder = path


class _StateDict(dict[object, object]):
    """Replaces the ordered dict, whose methods a pickle could hide behind attributes."""

    def __setstate__(self, state: object) -> None:
        """Ignores the attribute in which OneFlow keeps the versions of modules."""


_ADMITTED: dict[tuple[str, str], type] = {
    ("collections", "OrderedDict"): _StateDict,
    ("oneflow.nn", "Parameter"): _TensorReference,
    ("oneflow", "Tensor"): _TensorReference,
    ("oneflow._oneflow_internal", "Tensor"): _TensorReference,
}


class _Unpickler(pickle.Unpickler):
    """Admits the two classes of a saved state dict and nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no state dict needs") from None


def is_oneflow_directory(directory: Path) -> bool:
    """Returns whether a path has the file of names of a directory that ``oneflow.save`` wrote."""
    return os.path.isfile(directory / "pickled_data")


def read_oneflow_directory(directory: Path) -> dict[str, npt.NDArray[np.generic]]:
    """Returns the tensors of a saved state dict by name.

    Raises:
        CheckpointError: the directory is of another kind, damaged, or would run code.
    """
    names = directory / "pickled_data"
    if not is_oneflow_directory(directory):
        raise CheckpointError(
            f"{directory} is not a checkpoint: a directory written by oneflow.save has a file pickled_data."
        )
    data = _read(names, _MAX_PICKLE)
    try:
        _check_opcodes(data)
        content = _Unpickler(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle raises almost any exception
        raise CheckpointError(f"{names} was refused: {error}.") from error
    state = content.get("data") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        raise CheckpointError(f"{directory} does not hold a model's state dict.")
    tensors: dict[str, npt.NDArray[np.generic]] = {}
    read: dict[str, npt.NDArray[np.generic]] = {}  # each folder once, however many names it has
    for name, reference in state.items():
        if not (isinstance(name, str) and isinstance(reference, _TensorReference) and reference.folder):
            raise CheckpointError(f"{directory} does not hold a model's state dict.")
        if reference.folder not in read:
            read[reference.folder] = _read_tensor(directory / reference.folder)
        tensors[name] = read[reference.folder]
    return tensors


def _check_opcodes(data: bytes) -> None:
    """Raises UnpicklingError for an opcode that no state dict needs; executes none."""
    for opcode, argument, _ in pickletools.genops(data):
        if not _OPCODES.fullmatch(opcode.name):
            raise pickle.UnpicklingError(f"it holds more than a state dict (opcode {opcode.name})")
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > len(data):
            raise pickle.UnpicklingError("it allocates more memory than it can need")


def _read_tensor(folder: Path) -> npt.NDArray[np.generic]:
    meta, out = folder / "meta", folder / "out"
    description = _read(meta, _MAX_META).decode("utf-8", errors="replace")
    dtype = re.search(r"\bdata_type:\s*(\w+)", description)
    if dtype is None or dtype[1] not in _TYPE_NAMES:
        raise CheckpointError(f"{meta} names no data type that weights can have.")
    kind = np.dtype(_TYPE_NAMES[dtype[1]])
    shape = tuple(int(size) for size in re.findall(r"\bdim:\s*(\d+)", description))
    values = _read(out, limit=kind.itemsize * math.prod(shape))
    try:
        return np.frombuffer(values, dtype=kind).reshape(shape)
    except (ValueError, OverflowError):
        raise CheckpointError(
            f"{out} holds {len(values)} bytes, which does not fit the shape {shape}."
        ) from None


def _read(file: Path, limit: int) -> bytes:
    """Returns the content of a regular file of at most ``limit`` bytes."""
    try:
        return read_bytes(file, limit)
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {os_reason(error)}.") from error
