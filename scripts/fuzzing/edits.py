"""Edits of a file's meaning rather than of its bytes, which a checksum would detect."""

from __future__ import annotations

from typing import Any

import atheris
import numpy as np

from kdtrain.store.checkpoint import Weights

_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 28, 64, 65, 2**31, 2**63, 10**30, -0.5, 1e308),
    *(float("nan"), float("inf"), "", "0", "teacher_cnn", "hinton_1200", "a\0b", "\x1b[2J\n", [], {}, [[]]),
)
_TYPES = ("float32", "float64", "float16", "int64", "uint8", "bool", "int8")


class Edits:
    """What the fuzzer's bytes ask for."""

    def __init__(self, data: bytes) -> None:
        self._bytes = atheris.FuzzedDataProvider(data)

    def number(self, below: int) -> int:
        """Returns 0 to ``below`` - 1."""
        return int(self._bytes.ConsumeIntInRange(0, below - 1))

    def change(self, tree: Any) -> Any:
        """Returns a JSON value with something in it replaced, left out, added or doubled."""
        if not isinstance(tree, (dict, list)) or not tree or self.number(8) == 0:
            return self._value()
        keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
        key, copy = keys[self.number(len(keys))], tree.copy()
        match self.number(6):
            case 0:
                del copy[key]
            case 1 if isinstance(copy, dict):
                copy[self._text()] = copy.pop(key)
            case 1 if isinstance(copy, list):
                copy.append(copy[key])
            case _:
                copy[key] = self.change(tree[key])
        return copy

    def damage(self, tensors: Weights) -> Weights:
        """Returns tensors of which one is renamed, left out, or of another shape, type or content."""
        copy = dict(tensors)
        name = sorted(copy)[self.number(len(copy))]
        array = copy[name]
        match self.number(8):
            case 0:
                del copy[name]
            case 1:
                copy[self._text()] = copy.pop(name)
            case 2:
                copy[name.replace("0", str(self.number(12)))] = array
            case 3:
                copy[name] = array.astype(_TYPES[self.number(len(_TYPES))])
            case 4:
                shape = [self.number(5) for _ in range(self.number(6))]
                copy[name] = np.zeros(shape, array.dtype)
            case 5:
                copy[name] = array[..., None] if self.number(2) else array.reshape(-1)[: self.number(9)]
            case 6:
                copy[name] = np.full_like(array, np.nan if array.dtype.kind == "f" else 1)
            case _:
                copy[name] = copy[sorted(copy)[self.number(len(copy))]]
        return copy

    def _value(self) -> Any:
        match self.number(6):
            case 0:
                return self._bytes.ConsumeInt(8)
            case 1:
                return self._bytes.ConsumeFloat()
            case 2:
                return self._text()
            case _:
                return _VALUES[self.number(len(_VALUES))]

    def _text(self) -> str:
        return str(self._bytes.ConsumeUnicodeNoSurrogates(self.number(20)))
