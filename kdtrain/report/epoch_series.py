"""A figure of one model over the epochs, for each of its seeds: the series that every chart draws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class EpochSeries:
    """A figure over the E epochs that every one of S seeds reached; made by ``EpochSeries.of``.

    Attributes:
        epochs: (E,) int64, counted from 1, in order.
        values: (S, E) float64, in the unit of the figure.
    """

    epochs: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    @classmethod
    def of(cls, histories: Sequence[Mapping[int, float]]) -> EpochSeries:
        """Returns the series of ``histories``, which hold each seed's figure by epoch.

        Epochs that some seed did not reach are left out: the mean would jump where a seed stopped early.
        """
        epochs = sorted(set(histories[0]).intersection(*histories[1:])) if histories else []
        values = [[history[epoch] for epoch in epochs] for history in histories]
        return cls(np.array(epochs, np.int64), np.array(values, np.float64))

    @property
    def mean(self) -> npt.NDArray[np.float64]:
        """(E,) float64, over the seeds."""
        return np.asarray(self.values.mean(axis=0))
