"""Files that keep a teacher's outputs for the training images, mapped into memory."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kdtrain.errors import CheckpointError
from kdtrain.runtime.files import make_folder
from kdtrain.store.checkpoint import load_tensors, save_tensors

Floats = npt.NDArray[np.float32]
Positions = npt.NDArray[np.int64]
Shape = tuple[int, ...]

_FILE_SIZE = 1 << 26  # bytes of a layer's outputs; such a file is held in memory while it is written
_ATTEMPTS = 10  # to write a file that other fits replace at the same time


class Rows(NamedTuple):
    """Outputs for some images.

    Attributes:
        numbers: (K,) int64, the images' numbers in the source, rising.
        values: (K, ...) float32, in memory or mapped.
    """

    numbers: Positions
    values: Floats


class OutputFiles:
    """The outputs of one kind, logits or a layer, for one variant of a source's images.

    Each file is for a range of the images' numbers and has only the images that were asked for. It is
    written whole and has its key and a checksum; a damaged one, or one of another key, is made anew. Several
    fits may write the same file: each adds its own images to those that the file has, and goes on with a file
    that has all of its own.

    Args:
        folder: the folder of the files; None keeps the outputs in memory.
        key: everything that the outputs depend on.
        shape: the shape of an output, such as (channels, height, width); None for logits, which are in one
            file, because their number is known only from the first output on.
        size: the number of images in the source.
        writes: whether this process writes files.
    """

    def __init__(
        self, folder: Path | None, key: Sequence[str], shape: Shape | None, size: int, *, writes: bool = True
    ) -> None:
        self._folder = folder
        self._key = list(key)
        self._shape = shape
        self._size = size
        self._per_file = size if shape is None else max(1, _FILE_SIZE // (4 * math.prod(shape)))
        self._writes = writes and folder is not None
        self._files: dict[int, Rows] = {}
        self._new: dict[int, list[Rows]] = {}

    @property
    def number_of_files(self) -> int:
        """The number of files if there is an output for every image of the source."""
        return -(-self._size // self._per_file)

    def known(self, numbers: Positions) -> npt.NDArray[np.bool_]:
        """Returns which of some images, (K,) int64, have an output in the files: (K,) bool."""
        known = np.zeros(len(numbers), bool)
        files = numbers // self._per_file
        for file in np.unique(files).tolist():
            self._files[file] = self._read(file)
            own = files == file
            known[own] = np.isin(numbers[own], self._files[file].numbers)
        return known

    def add(self, rows: Rows) -> None:
        """Adds outputs for images that have none yet; ``save`` writes them."""
        files = rows.numbers // self._per_file
        for file in np.unique(files).tolist():
            chosen = files == file
            self._new.setdefault(file, []).append(Rows(rows.numbers[chosen], rows.values[chosen]))

    def save(self, below: int | None = None) -> None:
        """Writes the files that have new outputs.

        Args:
            below: the least number of an image that is still to come; only files that it cannot be in are
                written. None: all.
        """
        for file in sorted(self._new):
            if below is None or below // self._per_file > file:
                self._save(file)

    def rows(self) -> list[Rows]:
        """Returns the outputs of each file, all of which are saved."""
        return [rows for _, rows in sorted(self._files.items()) if len(rows.numbers)]

    def values(self, numbers: Positions) -> Floats:
        """Returns the outputs for some images that have one, (K,) int64, rising: (K, ...) float32."""
        chosen = [rows.values[np.isin(rows.numbers, numbers)] for rows in self.rows()]
        return np.concatenate(chosen)

    def forget(self) -> None:
        """Removes all files, so that every output is computed anew."""
        self._files = {}
        for file in range(self.number_of_files if self._writes else 0):
            path = self._path(file)
            if path is not None:
                path.unlink(missing_ok=True)

    def stored_bytes(self) -> int:
        """Returns the size of the files that there are."""
        paths = map(self._path, range(self.number_of_files))
        return sum(path.stat().st_size for path in paths if path is not None and path.exists())

    def _save(self, file: int) -> None:
        own = _joined([*self._new.pop(file), self._files.get(file, self._nothing())])
        self._files[file] = own
        path = self._path(file)
        if path is None or not self._writes:
            return
        make_folder(path.parent)
        stored = self._read(file)
        for _ in range(_ATTEMPTS):
            if np.isin(own.numbers, stored.numbers).all():
                self._files[file] = stored
                return
            rows = _joined([own, stored])
            known = np.zeros(min(self._per_file, self._size - file * self._per_file), bool)
            known[rows.numbers - file * self._per_file] = True
            save_tensors(path, {"known": known, "values": rows.values}, {"outputs": self._key_of(file)})
            stored = self._mapped(file, path)

    def _read(self, file: int) -> Rows:
        """Returns the outputs in a file; none if there is no such file, or it is damaged."""
        path = self._path(file)
        if path is None or not path.exists():
            return self._nothing()
        try:
            header = load_tensors(path)[1]  # compares the checksum
        except CheckpointError:
            return self._nothing()
        is_own = header.get("outputs") == self._key_of(file)  # the name alone may be that of a copy
        return self._mapped(file, path) if is_own else self._nothing()

    def _mapped(self, file: int, path: Path) -> Rows:
        """Returns the outputs in an undamaged file; the file may be replaced afterwards."""
        try:
            with open(path, "rb") as opened:
                length = int.from_bytes(opened.read(8), "little")
                entries = json.loads(opened.read(length))
                content = np.memmap(opened, np.uint8, "r").view(np.ndarray)
        except (OSError, ValueError):  # another process has removed it
            return self._nothing()
        arrays: dict[str, npt.NDArray[Any]] = {}
        for name, dtype in (("known", np.bool_), ("values", np.dtype("<f4"))):
            if name not in entries:
                return self._nothing()
            start, stop = (8 + length + offset for offset in entries[name]["data_offsets"])
            arrays[name] = content[start:stop].view(dtype).reshape(entries[name]["shape"])
        numbers = np.flatnonzero(arrays["known"]) + file * self._per_file
        values = arrays["values"]
        fits = len(numbers) == len(values) and self._shape in (None, values.shape[1:])
        return Rows(numbers, values) if fits else self._nothing()

    def _nothing(self) -> Rows:
        return Rows(np.zeros(0, np.int64), np.zeros((0, *(self._shape or (0,))), np.float32))

    def _path(self, file: int) -> Path | None:
        if self._folder is None:
            return None
        digest = hashlib.sha256(json.dumps(self._key_of(file)).encode()).hexdigest()[:32]
        return self._folder / f"{digest}.safetensors"

    def _key_of(self, file: int) -> list[str]:
        return [*self._key, str(file)] if file else self._key


def _joined(parts: Sequence[Rows]) -> Rows:
    """Returns the outputs of several parts; of an image that is in several, that of the first of them."""
    parts = [part for part in parts if len(part.numbers)] or list(parts[:1])
    numbers, first = np.unique(np.concatenate([part.numbers for part in parts]), return_index=True)
    return Rows(numbers, np.concatenate([part.values for part in parts])[first])
