"""The commands of kdtrain as Python functions.

They take the settings of ``kdtrain fit`` by name, with the same defaults and recipes. They print nothing, and
raise KdtrainError.
"""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from kdtrain.errors import UsageError
from kdtrain.experiment.compare import ComparisonRun, run_compare
from kdtrain.experiment.dry_run import DryRunResult, try_out
from kdtrain.experiment.loaders import RunData, count_training, prepare, read_data
from kdtrain.experiment.result import TestedModel
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.keywords import as_path, given_settings, naming_arguments
from kdtrain.experiment.settings.load import LATEST, fit_config, new_config, tune_config
from kdtrain.experiment.settings.schema import NO_RECIPE
from kdtrain.experiment.student import run_fit
from kdtrain.experiment.teachers.find import describe_teacher, find_teacher
from kdtrain.experiment.tune.search import TuneRun, run_tune
from kdtrain.runtime import flow
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.ranks import rank

logger = logging.getLogger(__name__)

OF_THE_DATA = (
    *("mode", "recipe", "dataset", "data_dir", "image_size", "skip_corrupt", "labels"),
    *("transfer_data", "transfer_share", "allow_test_images", "val_size", "omit_class", "limit_train"),
    *("seed", "augment", "teacher_augment", "views", "data_seed", "batch_size", "balance", "device"),
)
"""Settings of ``kdtrain fit`` that ``load_data`` accepts."""

_OF_A_TEACHER = (
    *("teacher_arch", "teacher_checkpoint", "teacher_weight", "teacher_mean", "teacher_std"),
    *("teacher_input_size", "teacher_layout", "teacher_logits", "teacher_classes", "allow_poor_teacher"),
    *("logdir", "model_save_dir"),
)
"""Settings of ``kdtrain fit`` that ``load_teacher`` accepts."""


@naming_arguments
def fit(
    mode: str, *, config: Path | str | None = None, resume: Path | str | bool | None = None, **settings: Any
) -> TestedModel:
    """Trains one network, as ``kdtrain fit --mode MODE`` does, and tests its best weights.

    Args:
        mode: teacher, student or student_kd; ``compare`` has a function of its own.
        config: a TOML file with settings; those given here replace its own.
        resume: the directory of an interrupted run to go on with; True for the latest of this mode.
        settings: settings of ``kdtrain fit``, such as ``epochs=3`` or ``plugin=["dkd,temperature=2"]``.

    Returns:
        The network.

    Raises:
        KdtrainError: a setting, the data or a file is invalid, or the training fails.
    """
    if mode == "compare":
        raise UsageError("fit: the mode compare trains several networks: call kdtrain.compare.")
    given = given_settings("fit", settings)
    chosen, directory = fit_config({"mode": mode, **given}, as_path(config), _resumed(resume))
    _check_processes(chosen)
    model = run_fit(chosen, directory)
    for warning in model.warnings:
        logger.warning(warning)
    return model


@naming_arguments
def compare(
    *, config: Path | str | None = None, resume: Path | str | bool | None = None, **settings: Any
) -> ComparisonRun:
    """Trains a teacher, a distilled student and a plain one, and compares them.

    It does what ``kdtrain fit --mode compare`` does.

    Args:
        config: a TOML file with settings, such as ``TuneRun.best``; those given here replace its own.
        resume: the directory of an interrupted comparison to go on with; True for the latest.
        settings: settings of ``kdtrain fit``, such as ``seeds=5``.

    Raises:
        KdtrainError: a setting, the data or a file is invalid, or the training fails.
    """
    given = given_settings("compare", settings, _without_mode())
    chosen, directory = fit_config({"mode": "compare", **given}, as_path(config), _resumed(resume))
    _check_processes(chosen)
    return run_compare(chosen, directory)


@naming_arguments
def tune(
    *,
    budget: str | int | None = None,
    search: str | list[str] | tuple[str, ...] | None = None,
    tune_seeds: int | None = None,
    config: Path | str | None = None,
    resume: Path | str | bool | None = None,
    **settings: Any,
) -> TuneRun:
    """Chooses the settings of every student on held-out images, as ``kdtrain tune`` does.

    Args:
        budget: minutes for everything, such as ``"20m"``, or number of trials of each student.
        search: values to choose from, such as ``["temperature=1..8", "lr=0.001,0.003"]``.
        tune_seeds: number of seeds that each trial is trained with.
        config: a TOML file with settings; those given here replace its own.
        resume: the directory of an interrupted search to go on with; True for the latest.
        settings: settings of ``kdtrain fit``.

    Raises:
        KdtrainError: a setting, the data or a file is invalid, or every trial fails.
    """
    given = given_settings("tune", settings, _without_mode())
    chosen, directory = tune_config({"mode": "compare", **given}, as_path(config), _resumed(resume))
    searches = [search] if isinstance(search, str) else search
    order = None if budget is None else str(budget)
    return run_tune(chosen, directory, budget=order, search=searches, tune_seeds=tune_seeds)


@naming_arguments
def check(mode: str = "compare", *, config: Path | str | None = None, **settings: Any) -> list[DryRunResult]:
    """Tries out a fit on two batches, as ``kdtrain fit --check`` does, and leaves no file.

    Args:
        mode: teacher, student, student_kd or compare.
        config: a TOML file with settings; those given here replace its own.
        settings: settings of ``kdtrain fit``.

    Returns:
        The networks, each after its teacher.

    Raises:
        KdtrainError: the errors of the fit itself.
    """
    given = given_settings("check", settings)
    chosen, _ = fit_config({"mode": mode, **given}, as_path(config), None)
    _check_processes(chosen)
    return try_out(chosen)


@naming_arguments
def config(*, config: Path | str | None = None, **settings: Any) -> FitConfig:
    """Returns the settings of a fit with its recipe, as ``kdtrain config`` prints them.

    Args:
        config: a TOML file with settings; those given here replace its own.
        settings: settings of ``kdtrain fit``.

    Returns:
        The configuration; its ``to_toml()`` is the text of a file for the argument ``config``.

    Raises:
        UsageError: a setting is unknown, or its value is not allowed.
    """
    return new_config(given_settings("config", settings), as_path(config))


@naming_arguments
def load_data(**settings: Any) -> RunData:
    """Returns the loaders that ``kdtrain fit`` uses with these settings.

    Args:
        settings: any of the settings mode, recipe, dataset, data_dir, image_size, skip_corrupt, labels,
            transfer_data, transfer_share, allow_test_images, val_size, omit_class, limit_train, augment,
            teacher_augment, views, data_seed, batch_size, balance, seed and device of ``kdtrain fit``, with
            the same meaning. The mode is student_kd unless it is given, and the recipe none. A setting that
            is None counts as not given.

    Returns:
        The loaders ``train``, ``validation`` and ``test``, and the ``dataset`` itself.

    Raises:
        UsageError: a setting is unknown, or its value is not allowed.
        DataError: files are missing, damaged or inconsistent.
    """
    given = given_settings("load_data", settings, OF_THE_DATA)
    chosen = new_config({"mode": "student_kd", "recipe": NO_RECIPE, **given})
    network = "teacher" if chosen.mode == "teacher" else "student"
    return prepare(read_data(chosen), chosen, network, chosen.seed, resolve_device(chosen.device))


@naming_arguments
def load_teacher(data: RunData, **settings: Any) -> flow.nn.Module:
    """Returns the teacher that ``kdtrain fit`` takes with these settings, for ``DistillationCallback``.

    It takes the images of ``data`` in any form, and has a logit for each class of ``data``.

    Args:
        data: what ``load_data`` returns.
        settings: any of the settings teacher_arch, teacher_checkpoint, teacher_weight, teacher_mean,
            teacher_std, teacher_input_size, teacher_layout, teacher_logits, teacher_classes,
            allow_poor_teacher, logdir and model_save_dir of ``kdtrain fit``. Without teacher_checkpoint and
            teacher_logits it is the teacher that an earlier fit has kept for these data.

    Returns:
        A network in evaluation mode, on the device of ``data``; of several files, their mean. A table of
        logits is one too, which computes nothing.

    Raises:
        UsageError: a setting does not fit a teacher, or there is no teacher.
        CheckpointError: a file cannot be read, or does not fit the data, or its accuracy is near chance.
        DataError: a table of logits cannot be used.
    """
    given = new_config({"recipe": "none", **given_settings("load_teacher", settings, _OF_A_TEACHER)})
    values = {name: getattr(given, name) for name in settings if name in _OF_A_TEACHER}
    chosen = dataclasses.replace(data.config, **values).with_epochs(count_training(data.dataset, data.config))
    teacher = find_teacher(chosen, data.dataset)
    if teacher is None:
        raise UsageError(
            f"load_teacher: there is no teacher of {data.dataset.name} in {chosen.models}. Train one with "
            'kdtrain.fit("teacher"), or name a file with teacher_checkpoint.'
        )
    logger.info(describe_teacher(teacher, chosen, data.dataset, in_run=False))
    return teacher.build(data.train.device)


def _resumed(resume: Path | str | bool | None) -> Path | None:
    """Returns the directory to resume as ``fit_config`` takes it."""
    if resume is None or resume is False:
        return None
    return LATEST if resume is True else Path(resume)


def _without_mode() -> tuple[str, ...]:
    """Returns the settings of a function that trains in mode compare."""
    return tuple(field.name for field in dataclasses.fields(FitConfig) if field.name != "mode")


def _check_processes(chosen: FitConfig) -> None:
    """Raises UsageError if several processes are to train together, which commands start."""
    if chosen.nproc_per_node > 1 or rank() is not None:
        raise UsageError(
            "several processes train together only with the command `kdtrain fit`: leave nproc_per_node and "
            "the launcher out."
        )
