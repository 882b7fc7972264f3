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
        sizes = [images for _, images in self._batches]
        return {
            f"loss/{name}": float(
                np.average([losses[name].item() for losses, _ in self._batches], weights=sizes)
            )
            for name in (self._batches[0][0] if self._batches else ())
        }
