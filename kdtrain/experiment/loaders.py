"""From a data set to the three loaders of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.data.augmentation import Augmentation, Mixup, augmentation, mixup
from kdtrain.data.dataset import Dataset, Split, hold_out
from kdtrain.data.datasets import load_dataset
from kdtrain.data.loader import Loader
from kdtrain.errors import UsageError, unknown_name_message
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.config_file import load_config
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.ranks import Ranks

_USUALLY_HELD_OUT = 5000
_SETTINGS = ("dataset", "data_dir", "val_size", "limit_train", "augment", "batch_size", "seed", "device")
"""What ``load_data`` takes of the settings of ``kdtrain fit``."""


@dataclass(frozen=True)
class RunData:
    """The images of one run, in three loaders."""

    dataset: Dataset
    train: Loader
    validation: Loader
    test: Loader


def check_sizes(dataset: Dataset, config: FitConfig) -> None:
    """Raises UsageError if --val-size, --omit-class or --limit-train does not fit the data."""
    if config.val_size and dataset.validation is not None:
        raise UsageError(
            f"--val-size {config.val_size}: {dataset.name} has validation images of its own; leave it out."
        )
    network = "teacher" if config.mode == "teacher" else "student"
    training, _ = _divide(dataset, config, network, config.seed)
    if len(training) == 0:
        raise UsageError(
            "--omit-class leaves no training images: all that there are belong to those classes."
        )
    if config.limit_train is not None and config.limit_train > len(training):
        raise UsageError(
            f"--limit-train {config.limit_train}: there are only {len(training)} training images."
        )


def count_validation(dataset: Dataset, config: FitConfig) -> int:
    """Returns how many images there are to choose by; 0 if the test set has to do."""
    if config.val_size is None and dataset.validation is not None:
        return len(dataset.validation)
    return _held_out(dataset, config)


def count_training(dataset: Dataset, config: FitConfig) -> int:
    """Returns how many images a teacher is trained on."""
    images = len(dataset.train) - _held_out(dataset, config)
    return min(images, config.limit_train or images)


def prepare(
    dataset: Dataset, config: FitConfig, network: str, seed: int, device: str, ranks: Ranks | None = None
) -> RunData:
    """Holds out the validation images by seed, and normalises everything.

    Args:
        dataset: the images.
        config: says how many are held out, how many make a batch, and how they are augmented.
        network: ``teacher`` or ``student``.
        seed: which are held out, and in which order the others come.
        device: where batches are put.
        ranks: the processes that share each batch.

    Raises:
        UsageError: --val-size does not fit the data.
    """

    def loader(
        split: Split,
        indices: npt.NDArray[np.int64] | None = None,
        shuffle: int | None = None,
        augment: Augmentation | None = None,
        mixed: Mixup | None = None,
    ) -> Loader:
        return Loader(
            split.normalized(dataset.normalization, indices),
            split.labels if indices is None else split.labels[indices],
            config.batch_size * (ranks.batch_multiplier if ranks else 1),
            num_classes=dataset.num_classes,
            seed=shuffle,
            device=device,
            augment=augment,
            mixup=mixed,
            ranks=ranks,
            classes=dataset.classes,
        )

    training, held_out = _divide(dataset, config, network, seed)
    changes = config.augment_for(network)
    changed = augmentation(changes, dataset.normalization.background)
    train = loader(dataset.train, training[: config.limit_train], seed, changed, mixup(changes))
    test = loader(dataset.test)
    validation = test
    if len(held_out):
        validation = loader(dataset.train, held_out)
    elif dataset.validation is not None and config.val_size is None:
        validation = loader(dataset.validation)
    return RunData(dataset, train, validation, test)


def _divide(
    dataset: Dataset, config: FitConfig, network: str, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns which training images a network is trained on, and which are held out.

    A class that students do without is held out like any other: what they are chosen by measures
    the whole task.
    """
    training, held_out = hold_out(dataset.train, _held_out(dataset, config), seed)
    for name in config.omit_class:
        if name not in dataset.classes:
            raise UsageError(f"--omit-class: {unknown_name_message('class', name, dataset.classes)}")
    if network == "student" and config.omit_class:
        omitted = [dataset.classes.index(name) for name in config.omit_class]
        training = training[~np.isin(dataset.train.labels[training], omitted)]
    return training, held_out


def _held_out(dataset: Dataset, config: FitConfig) -> int:
    """Returns how many training images are held out to choose by."""
    if config.val_size is not None:
        return config.val_size
    return 0 if dataset.validation is not None else min(_USUALLY_HELD_OUT, len(dataset.train) // 6)


def load_data(**settings: Any) -> RunData:
    """Returns a data set as ``kdtrain fit --mode student`` sees it, in loaders.

    Args:
        settings: of those of ``kdtrain fit``: dataset, data_dir, val_size, limit_train, augment,
            batch_size, seed and device, with the same defaults.

    Returns:
        The loaders ``train``, ``validation`` and ``test``, and the ``dataset`` itself.

    Raises:
        UsageError: there is no such setting, or its value is not allowed.
        DataError: files are missing, damaged or inconsistent.
    """
    for name in settings:
        if name not in _SETTINGS:
            raise UsageError(f"load_data: {unknown_name_message('setting', name, _SETTINGS)}")
    config = load_config({"mode": "student", **settings})
    dataset = load_dataset(config.dataset, config.data_dir)
    check_sizes(dataset, config)
    return prepare(dataset, config, "student", config.seed, resolve_device(config.device))
