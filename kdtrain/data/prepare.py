"""From a data set to the three loaders of a run."""

from __future__ import annotations

from dataclasses import dataclass

from kdtrain.config import FitConfig
from kdtrain.data.datasets import Dataset, Split, hold_out
from kdtrain.data.loader import Loader
from kdtrain.errors import UsageError


@dataclass(frozen=True)
class RunData:
    """The images of one run, in three loaders."""

    dataset: Dataset
    train: Loader
    validation: Loader
    test: Loader


def check_sizes(dataset: Dataset, config: FitConfig) -> None:
    """Raises UsageError if --val-size or --limit-train does not fit the data."""
    training, _ = hold_out(dataset.train, config.val_size, config.seed)
    if config.limit_train is not None and config.limit_train > len(training):
        raise UsageError(
            f"--limit-train {config.limit_train}: there are only {len(training)} training images."
        )


def prepare(dataset: Dataset, config: FitConfig, seed: int, device: str) -> RunData:
    """Holds out the validation images by seed, and normalises everything.

    Raises:
        UsageError: --val-size does not fit the data.
    """

    def loader(split: Split, shuffle: int | None) -> Loader:
        return Loader(
            dataset.normalization.apply(split.images),
            split.labels,
            config.batch_size,
            num_classes=dataset.num_classes,
            seed=shuffle,
            device=device,
        )

    training, held_out = hold_out(dataset.train, config.val_size, seed)
    training = training[: config.limit_train]
    test = loader(dataset.test, None)
    validation = loader(dataset.train.take(held_out), None) if config.val_size else test
    return RunData(dataset, loader(dataset.train.take(training), seed), validation, test)
