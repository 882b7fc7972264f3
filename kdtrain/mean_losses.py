"""The mean losses of an epoch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from kdtrain.runtime import flow


class MeanLosses:
    """Means of the losses over an epoch's images.

    The losses stay on the device until ``compute``: no step waits for another one's number.
    """

    def __init__(self) -> None:
        self._batches: list[tuple[Mapping[str, flow.Tensor], int]] = []

    def add(self, losses: Mapping[str, flow.Tensor], images: int) -> None:
        """Notes the losses of one batch of ``images`` images."""
        self._batches.append((losses, images))

    @property
    def images(self) -> int:
        """How many images have been counted."""
        return sum(images for _, images in self._batches)

    def compute(self) -> dict[str, float]:
        """Returns the mean over all images, as ``loss/NAME``."""
        if not self._batches:
            return {}
        sizes = [images for _, images in self._batches]
        columns = zip(*(_values(losses) for losses, _ in self._batches), strict=True)
        return {
            f"loss/{name}": float(np.average(column, weights=sizes))
            for name, column in zip(self._batches[0][0], columns, strict=True)
        }


def _values(losses: Mapping[str, flow.Tensor]) -> list[float]:
    """Reads the losses of one batch; a tensor under two names, as a term alone and the total are, once."""
    tensors = {id(loss): loss for loss in losses.values()}
    read = {key: loss.item() for key, loss in tensors.items()}
    return [read[id(loss)] for loss in losses.values()]
