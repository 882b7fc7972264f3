"""The mean losses of an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
        batches = [losses for losses, _ in self._batches]
        sizes = [images for _, images in self._batches]
        return {f"loss/{name}": _mean([losses[name] for losses in batches], sizes) for name in batches[0]}


def _mean(losses: Sequence[flow.Tensor], sizes: Sequence[int]) -> float:
    """Returns the mean, weighted by ``sizes``. The losses are read together, not one by one."""
    values = flow.stack(list(losses)).numpy().reshape(len(sizes))
    return float(np.average(values.astype(np.float64), weights=sizes))
