"""A table of a teacher's answers, logits or a layer's output, from which a batch's are looked up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from kdtrain.callbacks.teacher_outputs.files import Floats, Positions, Rows
from kdtrain.data.loader import Batch
from kdtrain.runtime import flow


class AnswerTable:
    """A teacher's answers about each variant of each training image.

    Args:
        parts: arrays of answers, (K, ...) float32 each: one in memory, or several mapped from files.
        places: (variants, N) int64, the row of each variant of each image in all parts together.
        device: where batches are.
        in_memory: whether the parts are copied to the device; those of a large table stay in their files.
    """

    def __init__(
        self, parts: Sequence[Floats], places: npt.NDArray[np.int64], device: str, *, in_memory: bool = True
    ) -> None:
        self._places = places
        self._device = device
        self._parts = list(parts)
        self._starts = np.cumsum([0, *map(len, self._parts)])
        self._tensor: flow.Tensor | None = None
        if in_memory:
            self._tensor = flow.tensor(np.concatenate(self._parts)).to(device)
            self._parts = []

    def __call__(self, batch: Batch) -> flow.Tensor:
        """Returns the answers about a batch of training images, (B, ...) float32."""
        variants = 0 if batch.variants is None else batch.variants.numpy()
        rows = self._places[variants, batch.indices.numpy()]
        if self._tensor is not None:
            return self._tensor.index_select(0, flow.tensor(rows).to(self._device))
        part_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        answers = np.empty((len(rows), *self._parts[0].shape[1:]), np.float32)
        for part in np.unique(part_of_row).tolist():
            chosen = np.flatnonzero(part_of_row == part)
            answers[chosen] = self._parts[part][rows[chosen] - self._starts[part]]
        return flow.from_numpy(answers).to(self._device)


class TableBuilder:
    """Makes a table from the answers about one variant after another.

    Args:
        numbers: (N,) int64, the number of each of the loader's images in the source.
        variants: the number of variants.
        in_memory: whether the answers are copied into memory.
    """

    def __init__(self, numbers: Positions, variants: int, *, in_memory: bool) -> None:
        self._numbers = numbers
        self._in_memory = in_memory
        self._parts: list[Floats] = []
        self._places = np.zeros((variants, len(numbers)), np.int64)
        self._size = 0

    def add(self, variant: int, wanted: Positions, answers: Sequence[Rows]) -> None:
        """Adds a variant.

        Args:
            variant: its number.
            wanted: (K,) int64, the loader's positions of the images that take it.
            answers: those about these images, and maybe others, in parts for ranges of numbers.
        """
        for rows in answers:
            place = np.minimum(np.searchsorted(rows.numbers, self._numbers[wanted]), len(rows.numbers) - 1)
            own = rows.numbers[place] == self._numbers[wanted]
            if self._in_memory:
                self._append(variant, wanted[own], rows.values[place[own]], np.arange(own.sum()))
            else:
                self._append(variant, wanted[own], rows.values, place[own])

    def table(self, device: str) -> AnswerTable:
        """Returns the table of all variants."""
        return AnswerTable(self._parts, self._places, device, in_memory=self._in_memory)

    def _append(self, variant: int, positions: Positions, values: Floats, rows: Positions) -> None:
        self._places[variant, positions] = self._size + rows
        self._parts.append(values)
        self._size += len(values)
