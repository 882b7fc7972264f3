"""Dry runs: of every command before its training, and of a fit on a few images for ``--check``."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.callbacks import DistillationCallback
from kdtrain.callbacks.plugins import numeric_arguments
from kdtrain.data.dataset import Dataset, Split
from kdtrain.data.datasets import of_image_files
from kdtrain.data.loader import Batch
from kdtrain.engine.callback import CallbackList
from kdtrain.engine.objective import Objective
from kdtrain.engine.recorder import Recorder
from kdtrain.experiment.fit import FitSpec
from kdtrain.experiment.modes import MODES, callbacks_for, controls_of
from kdtrain.experiment.result import TestedModel
from kdtrain.experiment.session import Session, measured
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.load import tuned_settings
from kdtrain.experiment.teachers.find import TrainedTeacher, find_teacher, trained_here
from kdtrain.experiment.warm_start import announce_first_weights
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.runtime.console import silence
from kdtrain.runtime.files import temporary_folder
from kdtrain.store.card import model_card
from kdtrain.store.checkpoint import load_tensors
from kdtrain.store.record import SINGLE_MODES, Model

logger = logging.getLogger(__name__)

_BATCHES = 2
_PICTURES = 2000  # limit on the decoded images of a folder
_TEACHERS = 2


def dry_run(config: FitConfig, dataset: Dataset, teacher: TrainedTeacher | None) -> None:
    """Calls ``configure`` of every callback of every fit once, on networks with initial weights.

    ``configure`` has no side effects. Its errors, such as a plugin that is given twice, would otherwise
    be raised only after the training of the previous networks. A temperature that no loss reads is said.
    Where images have no labels, the losses of students with a teacher are computed once, because some
    methods need a label for each image.

    Args:
        config: configuration of the command.
        dataset: the images that the networks are for.
        teacher: the teacher that exists already; None if there is none or one is trained first.

    Raises:
        CallbackError: a callback's ``configure`` raised.
        KdtrainError: a loss cannot be computed for images without labels.
    """
    teaching, is_read = None if teacher is None else teacher.build(), True
    for model in _models(config, has_teacher=teacher is not None):
        mode, arch = MODES[model], config.architecture_for(MODES[model].network)
        network = build_model(arch, dataset.image_shape, dataset.num_classes)
        of_fit = dataclasses.replace(config, plugin=(*config.plugin, *mode.plugins))
        card = model_card(mode.fit, arch, dataset)
        callbacks = callbacks_for(of_fit, card, model, teaching if mode.has_teacher else None)
        student = Recorder(network, "student", flow.zeros(1, *dataset.image_shape))
        objective = CallbackList(callbacks).configure(Objective.task().with_student(student))
        if dataset.transfer is not None and mode.has_teacher:
            _compute_losses(objective, dataset)
        if not mode.plugins:
            is_read &= all(c.temperature_is_read for c in callbacks if isinstance(c, DistillationCallback))
        if model == "teacher":
            teaching = network
    if not is_read:
        logger.info(_unread_sentence(config))


def _unread_sentence(config: FitConfig) -> str:
    """Returns what is said of a temperature that no loss reads, because plugins have replaced those."""
    own = {spec.partition(",")[0]: numeric_arguments(spec).get("temperature") for spec in config.plugin}
    said = [f" {name} has temperature={value:g}." for name, value in own.items() if value is not None]
    return f"--temperature {config.temperature:g} has no effect: no loss reads it.{''.join(said)}"


def _compute_losses(objective: Objective, dataset: Dataset) -> None:
    """Computes every term on a batch in which some images have no label.

    Raises:
        KdtrainError: a term needs a label for each image.
    """
    pixels = np.random.default_rng(0).normal(size=(4, *dataset.image_shape)).astype(np.float32)
    numbers = np.arange(4)
    batch = Batch(
        flow.tensor(pixels),
        flow.tensor(np.zeros_like(numbers)),
        flow.tensor(numbers),
        labelled=flow.tensor(numbers < 2),
        label_count=2.0,
    )
    objective(batch, objective.student(batch.inputs))


def _models(config: FitConfig, *, has_teacher: bool) -> list[Model]:
    """Returns the models that a command trains, in order."""
    own = config.mode in ("student_kd", "compare") and not has_teacher
    teacher: list[Model] = ["teacher"] if own else []
    if config.mode == "compare":
        return [*teacher, "student_kd", "student", *controls_of(config)]
    return [*teacher, *(mode for mode in SINGLE_MODES if mode == config.mode)]


@dataclass(frozen=True)
class DryRunResult:
    """A network after its dry run.

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


def try_out(config: FitConfig) -> list[DryRunResult]:
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
            session = Session.open(_elsewhere(config, folder), most_images=most)
        teacher = None
        if config.has_teacher_files or config.mode == "student_kd":
            sizes = {name: getattr(session.config, name) for name in ("limit_train", "val_size", "labels")}
            # Not silenced: it says what teachers recognise.
            teacher = find_teacher(dataclasses.replace(config, **sizes), session.dataset)
        with silence():
            return _tried(_small(session, config, teacher), folder)


def _small(session: Session, config: FitConfig, teacher: TrainedTeacher | None) -> Session:
    """Returns a session with some images, and one epoch and seed.

    Args:
        session: the session of all images.
        config: configuration of the command.
        teacher: the teacher that exists already; None if there is none.
    """
    size = config.batch_size * session.ranks.size
    dataset = _few(session.dataset, config, size)
    small = dataclasses.replace(
        session.config if teacher is None else teacher.without_table().named_in(session.config),
        teacher_logits=None,  # a table has no logits of a part of the images
        teacher_weight=(),
        allow_poor_teacher=True,
        teachers=min(config.teachers, _TEACHERS),
        epochs=1,
        teacher_epochs=1,
        seeds=1,
        val_size=_val_size(dataset, config, size),
        limit_train=None,
    )
    return dataclasses.replace(session, config=small, dataset=dataset)


def _tried(session: Session, folder: Path) -> list[DryRunResult]:
    """Trains each network of a fit in a folder; returns them, each after its teacher."""
    config = session.config
    teacher = find_teacher(config, session.dataset) if config.has_teacher_files else None
    announce_first_weights(config, session.dataset)
    dry_run(config, session.dataset, teacher)
    tuned, results = tuned_settings(config), []
    for model in _models(config, has_teacher=teacher is not None):
        mode = MODES[model]
        settings = {"plugin": (*config.plugin, *mode.plugins), **tuned.get(model, {})}
        seeds = range(config.seed, config.seed + (config.teachers if model == "teacher" else 1))
        taught_by = teacher if mode.has_teacher else None
        specs = [
            FitSpec(mode.fit, seed, folder / f"seed_{seed}" / model, taught_by, model, settings)
            for seed in seeds
        ]
        trained = session.run([session.fit_and_test_job(spec) for spec in specs])
        if model == "teacher":
            teacher = measured(session, trained_here(*(network.saved for network in trained)))
            session.run(session.soft_label_jobs({config.seed: teacher}))
        results += [_result(model, network) for network in trained]
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

    A dry run reads only some images of a folder, so --limit-train, --labels and --val-size are not checked
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
        **(sizes if of_image_files(config.dataset) else {}),
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


def _result(name: str, model: TestedModel) -> DryRunResult:
    """Returns what a dry run shows of a network."""
    _, header = load_tensors(model.path.with_name("last.safetensors"))
    row = model.history[0]
    losses = {name.removeprefix("loss/"): row[name] for name in row if name.startswith("loss/")}
    callbacks = tuple(header["callbacks"])
    return DryRunResult(name, header["model"]["arch"], model.parameters, losses, callbacks)
