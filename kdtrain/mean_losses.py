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
        self._losses: dict[str, list[flow.Tensor]] = {}
        self._sizes: list[int] = []

    def add(self, losses: Mapping[str, flow.Tensor], images: int) -> None:
        """Notes the losses of one batch of ``images`` images."""
        for name, loss in losses.items():
            self._losses.setdefault(name, []).append(loss)
        self._sizes.append(images)

    @property
    def images(self) -> int:
        """How many images have been counted."""
        return sum(self._sizes)

    def compute(self) -> dict[str, float]:
        """Returns the mean over all images, as ``loss/NAME``."""
        return {
            f"loss/{name}": float(np.average([value.item() for value in values], weights=self._sizes))
            for name, values in self._losses.items()
        }
