"""A trial of a fit, for ``--check``: the same fit on a few images, in a folder that is gone afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Dataset, Split
from kdtrain.experiment.compare import run_comparison
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.modes import COMPARE, MODES
from kdtrain.experiment.session import Session
from kdtrain.experiment.single import run_single
from kdtrain.experiment.teacher import find_teacher
from kdtrain.runtime.console import silence
from kdtrain.runtime.files import temporary_folder
from kdtrain.store.checkpoint import load_tensors

_BATCHES = 2
_PICTURES = 2000  # of a folder's, at most, that are decoded
_GENERATIONS = 2


@dataclass(frozen=True)
class Tried:
    """A network that has gone through a trial.

    Attributes:
        name: what it was in the fit.
        arch: what it is.
        parameters: how many trainable values it has.
        losses: the mean of each term over the first batches.
        callbacks: those whose hooks were called.
    """

    name: str
    arch: str
    parameters: int
    losses: dict[str, float]
    callbacks: tuple[str, ...]


def try_out(config: FitConfig) -> list[Tried]:
    """Trains each network of a fit on two batches, evaluates it, and calls every hook of every callback.

    Nothing is left of it. A teacher that is not there yet is trained on two batches as well.

    Returns:
        The networks, each after the one that teaches it.

    Raises:
        KdtrainError: what the fit itself would raise.
    """
    with _interrupted_without_advice(), silence(), temporary_folder(Path(tempfile.gettempdir())) as folder:
        session = Session(_elsewhere(config, folder), most_pictures=_PICTURES)
        given = config.teacher_checkpoint is not None or config.mode == "student_kd"
        teacher = find_teacher(config, session.dataset) if given else None
        size = config.batch_size * session.ranks.size
        session.dataset = _few(session.dataset, config, size)
        session.config = dataclasses.replace(
            session.config,
            teacher_checkpoint=teacher.path if teacher else None,
            epochs=1,
            teacher_epochs=1,
            seeds=1,
            grid=(),
            generations=min(config.generations, _GENERATIONS),
            val_size=_val_size(session.dataset, config, size),
            limit_train=None,
        )
        if config.mode == "compare":
            run_comparison(session)
        else:
            run_single(session)
        states = folder.rglob("checkpoints/last.safetensors")
        tried = [_tried(state) for state in sorted(states, key=lambda path: path.stat().st_mtime_ns)]
        if config.mode == "compare":  # its students are trained side by side
            tried.sort(key=lambda one: COMPARE.index(one.name))
        return tried


@contextlib.contextmanager
def _interrupted_without_advice() -> Iterator[None]:
    """Takes away the advice to resume: there is nothing to go on with."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.args = ()
        raise


def _elsewhere(config: FitConfig, folder: Path) -> FitConfig:
    """Returns the configuration with every path to be written in ``folder``.

    How many pictures a folder has is not known in a trial, so they are not compared with what is asked for.
    """
    sizes: dict[str, Any] = {"limit_train": None, "val_size": 0 if config.val_size == 0 else None}
    return dataclasses.replace(
        config,
        logdir=folder,
        model_save_dir=folder / "models",
        image_save_dir=None,
        image_save_name=None,
        **(sizes if config.dataset.startswith("folder:") else {}),
    )


def _few(dataset: Dataset, config: FitConfig, size: int) -> Dataset:
    """Returns a data set with images for two training batches and one to choose by and to test."""
    omitted = [dataset.classes.index(name) for name in config.omit_class]
    kept = np.flatnonzero(~np.isin(dataset.train.labels, omitted))
    train = dataset.train.take(kept[_spread(len(kept), (_BATCHES + 1) * size)])
    validation = dataset.validation and _first(dataset.validation, size)
    return dataclasses.replace(dataset, train=train, test=_first(dataset.test, size), validation=validation)


def _first(split: Split, size: int) -> Split:
    return split.take(_spread(len(split), size))


def _spread(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """Returns so many of ``count`` indices, from beginning to end: images are often sorted by class."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))


def _val_size(dataset: Dataset, config: FitConfig, size: int) -> int | None:
    if config.val_size == 0 or dataset.validation is not None:
        return config.val_size
    return min(size, len(dataset.train) // (_BATCHES + 1))


def _tried(state: Path) -> Tried:
    """Returns what a run's files say of it."""
    directory = state.parents[1]
    _, header = load_tensors(state)
    result = json.loads((directory / "result.json").read_text())
    row = json.loads((directory / "metrics.jsonl").read_text().splitlines()[0])
    losses = {name.removeprefix("loss/"): row[name] for name in row if name.startswith("loss/")}
    name = directory.parent.name if directory.parent.name in MODES else directory.name
    return Tried(name, header["model"]["arch"], result["parameters"], losses, tuple(header["callbacks"]))
