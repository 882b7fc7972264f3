"""The data of a command, read as its settings say, and ``load_data`` for Python."""

from __future__ import annotations

import dataclasses
import logging
from pathlib import Path
from typing import Any

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import load_dataset
from kdtrain.data.download import default_cache_dir
from kdtrain.data.unlabelled import load_unlabelled, without_most_labels
from kdtrain.experiment.loaders import RunData, check_sizes, count_copies, prepare
from kdtrain.experiment.modes import MODES
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.settings.keywords import given_settings, naming_arguments
from kdtrain.experiment.settings.load import new_config
from kdtrain.experiment.settings.recipe import NO_RECIPE
from kdtrain.runtime.oneflow import resolve_device

logger = logging.getLogger(__name__)

DATA_SETTINGS = (
    *("mode", "recipe", "dataset", "data_dir", "image_size", "skip_corrupt", "labels"),
    *("transfer_data", "transfer_share", "allow_test_images", "val_size", "omit_class", "limit_train"),
    *("seed", "augment", "teacher_augment", "views", "data_seed", "batch_size", "device"),
)
"""Settings of ``kdtrain fit`` that ``load_data`` accepts."""


def read_data(config: FitConfig, most_images: int | None = None) -> Dataset:
    """Returns the data set of a command, after a check of the sizes, with its images without labels.

    Copies of images in several parts of the data are logged.

    Args:
        config: configuration of the command.
        most_images: limit on the images read of a folder; None for all.

    Raises:
        UsageError: a setting does not fit the data.
        DataError: files are missing, damaged or inconsistent.
    """
    dataset = load_dataset(
        config.dataset,
        config.data_dir,
        image_size=config.image_size,
        skip_corrupt=config.skip_corrupt,
        most_images=most_images,
    )
    if config.labels is not None:
        dataset = without_most_labels(dataset, config.labels, config.shared_data_seed, config.limit_train)
    check_sizes(dataset, config)
    if config.transfer_data is not None:
        dataset = _with_transfer(dataset, config, config.transfer_data, most_images)
    copies = count_copies(dataset, config)
    if copies is not None:
        logger.warning(copies.sentence)
    return dataset


def _with_transfer(dataset: Dataset, config: FitConfig, path: Path, most_images: int | None) -> Dataset:
    transfer = load_unlabelled(
        path,
        dataset,
        default_cache_dir(),
        image_size=config.image_size,
        skip_corrupt=config.skip_corrupt,
        most_images=most_images,
        allow_test_images=config.allow_test_images,
    )
    if dataset.transfer is not None:
        transfer = dataclasses.replace(dataset.transfer, more=transfer)
    return dataclasses.replace(dataset, transfer=transfer)


@naming_arguments
def load_data(**settings: Any) -> RunData:
    """Returns the loaders that ``kdtrain fit`` uses with these settings.

    Args:
        settings: any of the settings mode, recipe, dataset, data_dir, image_size, skip_corrupt, labels,
            transfer_data, transfer_share, allow_test_images, val_size, omit_class, limit_train, augment,
            teacher_augment, views, data_seed, batch_size, seed and device of ``kdtrain fit``, with the same
            meaning. The mode is student_kd unless it is given, and the recipe none. A setting that is None
            counts as not given.

    Returns:
        The loaders ``train``, ``validation`` and ``test``, and the ``dataset`` itself.

    Raises:
        UsageError: a setting is unknown, or its value is not allowed.
        DataError: files are missing, damaged or inconsistent.
    """
    given = given_settings("load_data", settings, DATA_SETTINGS)
    config = new_config({"mode": "student_kd", "recipe": NO_RECIPE, **given})
    network = "student" if config.mode == "compare" else MODES[config.mode].network
    return prepare(read_data(config), config, network, config.seed, resolve_device(config.device))
