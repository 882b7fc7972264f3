"""The mean losses of an epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from kdtrain.runtime import flow


def mean_losses(batches: Sequence[Mapping[str, flow.Tensor]], sizes: Sequence[int]) -> dict[str, float]:
    """Returns the mean over all images, as ``loss/NAME``.

    No step waits for its numbers: they stay on the device until the epoch is over.

    Args:
        batches: each batch's mean losses, by name.
        sizes: how many images each batch has.
    """
    names = batches[0] if batches else ()
    return {f"loss/{name}": _mean([losses[name] for losses in batches], sizes) for name in names}


def _mean(losses: Sequence[flow.Tensor], sizes: Sequence[int]) -> float:
    """Returns the mean, weighted by ``sizes``. The losses are read together, not one by one."""
    values = flow.stack(list(losses)).numpy().reshape(len(sizes))
    return float(np.average(values.astype(np.float64), weights=sizes))
