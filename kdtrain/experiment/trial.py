"""The trial of a fit for ``--check``: the same fit on a few images, in a temporary folder."""

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
from kdtrain.experiment.chain import run_chain
from kdtrain.experiment.compare import run_comparison
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.modes import COMPARED, MODES
from kdtrain.experiment.session import Session
from kdtrain.experiment.single import run_single
from kdtrain.experiment.teacher import TrainedTeacher, find_teacher
from kdtrain.runtime.console import silence
from kdtrain.runtime.files import temporary_folder
from kdtrain.store.checkpoint import load_tensors

_BATCHES = 2
_PICTURES = 2000  # limit on the decoded images of a folder
_GENERATIONS = 2
_TEACHERS = 2


@dataclass(frozen=True)
class TrialResult:
    """A network after its trial.

    Attributes:
        name: its role in the fit.
        arch: its architecture.
        parameters: number of trainable values.
        losses: mean of each term over the batches.
        callbacks: names of the callbacks whose hooks were called.
    """

    name: str
    arch: str
    parameters: int
    losses: dict[str, float]
    callbacks: tuple[str, ...]


def try_out(config: FitConfig) -> list[TrialResult]:
    """Trains each network of a fit on two batches, evaluates it, and calls every hook of every callback.

    No file remains. A missing teacher is trained on two batches as well.

    Returns:
        The networks, each after its teacher.

    Raises:
        KdtrainError: the errors of the fit itself.
    """
    most = None if config.teacher_logits else _PICTURES  # a table has a row for each picture
    with _without_resume_hint(), temporary_folder(Path(tempfile.gettempdir())) as folder:
        with silence():
            session = Session(_elsewhere(config, folder), most_images=most)
        teacher = None
        if config.has_teacher_files or config.mode == "student_kd":
            sizes = {name: getattr(session.config, name) for name in ("limit_train", "val_size", "labels")}
            # Not silenced: it says what teachers recognise.
            teacher = find_teacher(dataclasses.replace(config, **sizes), session.dataset)
        with silence():
            return _tried(config, session, teacher, folder)


def _tried(
    config: FitConfig, session: Session, teacher: TrainedTeacher | None, folder: Path
) -> list[TrialResult]:
    """Returns the networks of a fit after their trial in a folder, each after its teacher."""
    size = config.batch_size * session.ranks.size
    session.dataset = _few(session.dataset, config, size)
    session.config = dataclasses.replace(
        session.config if teacher is None else teacher.without_table().named_in(session.config),
        teacher_logits=None,  # a table has no logits of a part of the images
        teacher_weight=(),
        allow_poor_teacher=True,
        teachers=min(config.teachers, _TEACHERS),
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
    elif config.is_chain:
        run_chain(session)
    else:
        run_single(session)
    states = folder.rglob("checkpoints/last.safetensors")
    results = [_result(state) for state in sorted(states, key=lambda path: path.stat().st_mtime_ns)]
    if config.mode == "compare":  # its students are trained side by side
        order = list[str](COMPARED)
        results.sort(key=lambda result: order.index(result.name))
    return results


@contextlib.contextmanager
def _without_resume_hint() -> Iterator[None]:
    """Removes the hint to --resume from an interruption: the run directory is deleted."""
    try:
        yield
    except KeyboardInterrupt as error:
        error.args = ()
        raise


def _elsewhere(config: FitConfig, folder: Path) -> FitConfig:
    """Returns the configuration with every output path in ``folder``.

    A trial reads only some images of a folder, so --limit-train, --labels and --val-size are not checked
    against their number.
    """
    sizes: dict[str, Any] = {"limit_train": None, "val_size": 0 if config.val_size == 0 else None}
    if config.labels is not None:
        sizes["labels"] = "50%"
    return dataclasses.replace(
        config,
        logdir=folder,
        model_save_dir=folder / "models",
        image_save_dir=None,
        image_save_name=None,
        **(sizes if config.dataset.startswith("folder:") else {}),
    )


def _few(dataset: Dataset, config: FitConfig, size: int) -> Dataset:
    """Returns a data set with two training batches, one validation batch and one test batch."""
    omitted = [dataset.classes.index(name) for name in config.omit_class]
    kept = np.flatnonzero(~np.isin(dataset.train.labels, omitted))
    train = dataset.train.take(kept[_spread(len(kept), (_BATCHES + 1) * size)])
    validation = dataset.validation and _first(dataset.validation, size)
    return dataclasses.replace(dataset, train=train, test=_first(dataset.test, size), validation=validation)


def _first(split: Split, size: int) -> Split:
    return split.take(_spread(len(split), size))


def _spread(count: int, wanted: int) -> npt.NDArray[np.int64]:
    """Returns (M,) evenly spaced indices below ``count``: images are often sorted by class."""
    return np.unique(np.linspace(0, count - 1, min(count, wanted)).astype(np.int64))


def _val_size(dataset: Dataset, config: FitConfig, size: int) -> int | None:
    if config.val_size == 0 or dataset.validation is not None:
        return config.val_size
    return min(size, len(dataset.train) // (_BATCHES + 1))


def _result(state: Path) -> TrialResult:
    """Returns the network of a run directory, read from its files."""
    directory = state.parents[1]
    _, header = load_tensors(state)
    result = json.loads((directory / "result.json").read_text())
    row = json.loads((directory / "metrics.jsonl").read_text().splitlines()[0])
    losses = {name.removeprefix("loss/"): row[name] for name in row if name.startswith("loss/")}
    name = directory.parent.name if directory.parent.name in MODES else directory.name
    return TrialResult(
        name, header["model"]["arch"], result["parameters"], losses, tuple(header["callbacks"])
    )
