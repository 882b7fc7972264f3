"""The logits of a network for all images of a loader."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from kdtrain.data.loader import Batch, Loader
from kdtrain.engine.recorder import evaluating
from kdtrain.engine.teacher_network import Ensemble, images_for, mean_logits
from kdtrain.errors import NonFiniteError
from kdtrain.runtime import flow
from kdtrain.runtime.bars import progress_bar
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.runtime.user_code import call_network

# This and IMAGES_AT_ONCE bound the memory that a convolution needs; a larger batch is not faster.
_MOST_VALUES = 1 << 22  # pixel values in a batch: 27 images of 224x224 in colour


def predict_logits(
    model: flow.nn.Module, loader: Loader, *, description: str | None = None
) -> npt.NDArray[np.float32]:
    """Returns the logits of all images of ``loader``.

    The network runs in evaluation mode and without gradients; its mode is restored.

    Args:
        model: the network; a teacher of another input size gets the images read again, see ``images_for``.
        loader: the images; its batch size, order and augmentation do not matter. Its ranks share the
            work, and every rank gets all the logits.
        description: text of a progress bar; None shows none.

    Returns:
        (N, C) float32, row i for image i.

    Raises:
        NonFiniteError: a weight is not finite.
    """
    if isinstance(model, Ensemble):
        of_members = [predict_logits(member, loader, description=description) for member in model.members]
        return mean_logits(of_members, model.shares)
    check_weights(model)
    loader = images_for(model, loader)
    ordered = loader.sequential(images_at_once(loader))
    batches = ordered.epoch(1)
    if description is not None:
        batches = progress_bar(description, len(ordered), "batch", batches)
    return np.concatenate([loader.ranks.all_gather(batch_logits(model, batch)) for batch in batches])


def batch_logits(model: flow.nn.Module, batch: Batch) -> npt.NDArray[np.float32]:
    """Returns the logits of a batch, (B, C) float32, in evaluation mode and without gradients."""
    with evaluating(model):
        # Copied, because .numpy() is a view of memory that OneFlow reuses.
        logits: npt.NDArray[np.float32] = call_network(model, batch.inputs).numpy().copy()
    return logits


def images_at_once(loader: Loader) -> int:
    """Returns the batch size for evaluation, of all ranks together."""
    most = _MOST_VALUES // math.prod(loader.inputs.shape[1:])
    return max(loader.ranks.size, min(IMAGES_AT_ONCE, most))


def check_weights(model: flow.nn.Module) -> None:
    """Checks that all weights are finite.

    Raises:
        NonFiniteError: one is not. The logits do not always show it: oneDNN's ReLU of NaN is 0.
    """
    for name, tensor in model.state_dict().items():
        if not np.isfinite(tensor.numpy()).all():
            raise NonFiniteError(
                f"the network's outputs are not finite numbers: {name} holds NaN or infinity."
            )
