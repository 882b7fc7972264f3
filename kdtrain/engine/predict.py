"""A network's logits for many images."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kdtrain.data.loader import Loader
from kdtrain.runtime import flow
from kdtrain.runtime.console import watched
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.runtime.user_code import answer

# Both bound the memory that a convolution needs; a larger batch is not faster.
_MOST_VALUES = 1 << 22  # of the images in a batch: 27 of 224x224 in colour


def predict_logits(
    model: flow.nn.Module, loader: Loader, *, description: str | None = None
) -> npt.NDArray[np.float32]:
    """Returns the logits of all of ``loader``'s images, in their own order: (N, classes).

    The network is in evaluation mode meanwhile, no gradient is kept, and its mode is put back.

    Args:
        model: the network.
        loader: the images; its own batch size and order do not matter. Its ranks share the work, and
            all get all the logits.
        description: if given, a progress bar shows it.
    """
    fitting = _MOST_VALUES // math.prod(loader.inputs.shape[1:])
    ordered = loader.sequential(max(loader.ranks.size, min(IMAGES_AT_ONCE, fitting)))
    batches = ordered.epoch(1)
    if description is not None:
        batches = watched(batches, description, len(ordered), "batch")
    was_training = model.training
    model.eval()
    try:
        with flow.no_grad():
            # The copy matters: .numpy() is a view of memory that OneFlow may use again.
            logits = [answer(model, batch.inputs).numpy().copy() for batch in batches]
    finally:
        model.train(was_training)
    return np.concatenate([loader.ranks.all_gather(rows) for rows in logits])
