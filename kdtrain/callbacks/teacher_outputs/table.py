"""A table of a teacher's outputs, logits or a layer, from which a batch's are looked up."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from kdtrain.callbacks.teacher_outputs.files import Floats, Positions, Rows
from kdtrain.data.loader import Batch
from kdtrain.runtime import flow


class OutputTable:
    """A teacher's outputs for each variant of each training image.

    ``add`` takes one variant after another.

    Args:
        numbers: (N,) int64, the number of each of the loader's images in the source.
        variants: the number of variants.
        device: where batches are.
        in_memory: whether the outputs are copied into memory; those of a large table stay in their files.
    """

    def __init__(self, numbers: Positions, variants: int, device: str, *, in_memory: bool) -> None:
        self._numbers = numbers
        self._device = device
        self._in_memory = in_memory
        self._parts: list[Floats] = []
        self._starts = [0]
        self._places = np.zeros((variants, len(numbers)), np.int64)  # the row, in all parts together

    def add(self, variant: int, wanted: Positions, outputs: Sequence[Rows]) -> None:
        """Adds a variant.

        Args:
            variant: its number.
            wanted: (K,) int64, the loader's positions of the images that take it.
            outputs: those for these images, and maybe others, in parts for ranges of numbers.
        """
        for rows in outputs:
            place = np.minimum(np.searchsorted(rows.numbers, self._numbers[wanted]), len(rows.numbers) - 1)
            own = rows.numbers[place] == self._numbers[wanted]
            place, values = place[own], rows.values
            if self._in_memory:
                place, values = np.arange(own.sum()), values[place]
            self._places[variant, wanted[own]] = self._starts[-1] + place
            self._parts.append(values)
            self._starts.append(self._starts[-1] + len(values))

    def __call__(self, batch: Batch) -> flow.Tensor:
        """Returns the outputs for a batch of training images, (B, ...) float32."""
        variants = 0 if batch.variants is None else batch.variants.numpy()
        rows = self._places[variants, batch.indices.numpy()]
        part_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        outputs = np.empty((len(rows), *self._parts[0].shape[1:]), np.float32)
        for part in np.unique(part_of_row).tolist():
            chosen = np.flatnonzero(part_of_row == part)
            outputs[chosen] = self._parts[part][rows[chosen] - self._starts[part]]
        return flow.from_numpy(outputs).to(self._device)
