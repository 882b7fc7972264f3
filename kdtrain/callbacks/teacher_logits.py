"""A teacher's logits over a training set, kept on disk."""

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
    """Returns the SHA-256 of the network's structure and of all its weights' bytes."""
    return fingerprint(snapshot(model), repr(model))


def logits_over(
    teacher: flow.nn.Module, train: Loader, cache_directory: Path | None
) -> npt.NDArray[np.float32]:
    """Returns the teacher's logits over the training images, (N, classes), from the cache if it can."""
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
    """Returns the logits that were computed for this teacher on these data, or computes them.

    Args:
        directory: where the files are kept.
        teacher: the fingerprint of its weights.
        data: the fingerprint of the normalised images.
        compute: called when there is no file for the two, or a damaged one; on every rank if it is
            on any.
        ranks: the processes that ask together.
    """
    ranks = ranks or Ranks()
    key = hashlib.sha256(f"{teacher} {data}".encode()).hexdigest()[:32]
    path = directory / f"{key}.safetensors"
    known = _load(path)
    if not ranks.any_rank(known is None) and known is not None:
        return known
    logits = compute()
    if ranks.rank == 0:
        make_folder(directory)
        save_tensors(path, {"logits": logits}, {"teacher": teacher, "data": data})
    return logits


def _load(path: Path) -> npt.NDArray[np.float32] | None:
    """Returns the logits in a file; None where there are none, or damaged ones."""
    if not path.exists():
        return None
    try:
        return load_tensors(path)[0]["logits"].astype(np.float32, copy=False)
    except (CheckpointError, KeyError):
        return None
