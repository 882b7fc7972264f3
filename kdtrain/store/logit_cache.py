"""A teacher's logits over a training set, kept on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdtrain.errors import CheckpointError
from kdtrain.runtime import flow
from kdtrain.store.checkpoint import fingerprint, load_tensors, save_tensors, snapshot


def weights_fingerprint(model: flow.nn.Module) -> str:
    """Returns the SHA-256 of the network's structure and of all its weights' bytes."""
    return fingerprint(snapshot(model), repr(model))


def cached_logits(
    directory: Path, teacher: str, data: str, compute: Callable[[], npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """Returns the logits that were computed for this teacher on these data, or computes them.

    Args:
        directory: where the files are kept.
        teacher: the fingerprint of its weights.
        data: the fingerprint of the normalised images.
        compute: called when there is no file for the two, or a damaged one.
    """
    key = hashlib.sha256(f"{teacher} {data}".encode()).hexdigest()[:32]
    path = directory / f"{key}.safetensors"
    if path.exists():
        try:
            tensors, _ = load_tensors(path)
            return tensors["logits"].astype(np.float32, copy=False)
        except (CheckpointError, KeyError):
            pass  # damaged: computing them again replaces the file
    logits = compute()
    save_tensors(path, {"logits": logits}, {"teacher": teacher, "data": data})
    return logits
