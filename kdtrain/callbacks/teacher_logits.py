"""A teacher's logits over a training set, and their cache on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdtrain.data.loader import Loader
from kdtrain.engine.predict import predict_logits
from kdtrain.errors import CheckpointError
from kdtrain.runtime import flow
from kdtrain.runtime.files import make_folder
from kdtrain.runtime.ranks import Ranks
from kdtrain.store.checkpoint import fingerprint, load_tensors, save_tensors, snapshot


def weights_fingerprint(model: flow.nn.Module) -> str:
    """Returns the SHA-256 of a network's structure and of the bytes of all its weights, in hexadecimal."""
    return fingerprint(snapshot(model), repr(model))


def logits_over(
    teacher: flow.nn.Module, train: Loader, cache_directory: Path | None
) -> npt.NDArray[np.float32]:
    """Returns the teacher's logits over the training images.

    Args:
        teacher: the network.
        train: the training images.
        cache_directory: the folder with logits of earlier fits; None computes them.

    Returns:
        (N, C) float32, row i for the image with index i.
    """
    if cache_directory is None:
        return predict_logits(teacher, train, description="teacher's soft labels")
    return cached_logits(
        cache_directory,
        weights_fingerprint(teacher),
        train.fingerprint,
        compute=lambda: predict_logits(teacher, train, description="teacher's soft labels"),
        ranks=train.ranks,
    )


def cached_logits(
    directory: Path,
    teacher: str,
    data: str,
    compute: Callable[[], npt.NDArray[np.float32]],
    ranks: Ranks | None = None,
) -> npt.NDArray[np.float32]:
    """Returns the logits of a teacher on a data set, from a file or from ``compute``.

    Args:
        directory: the folder of the files.
        teacher: fingerprint of the teacher's weights.
        data: fingerprint of the normalised images.
        compute: returns the logits, (N, C) float32. It is called if the file is missing or damaged; if
            that is so on any rank, it is called on every rank.
        ranks: the processes that call this function together.

    Returns:
        (N, C) float32, row i for the image with index i.
    """
    ranks = ranks or Ranks()
    key = hashlib.sha256(f"{teacher} {data}".encode()).hexdigest()[:32]
    path = directory / f"{key}.safetensors"
    cached = _load(path)
    if not ranks.any_rank(cached is None) and cached is not None:
        return cached
    logits = compute()
    if ranks.rank == 0:
        make_folder(directory)
        save_tensors(path, {"logits": logits}, {"teacher": teacher, "data": data})
    return logits


def _load(path: Path) -> npt.NDArray[np.float32] | None:
    """Returns the logits in a file, (N, C) float32; None if it is missing or damaged."""
    if not path.exists():
        return None
    try:
        return load_tensors(path)[0]["logits"].astype(np.float32, copy=False)
    except (CheckpointError, KeyError):
        return None
