"""From a data set to the three loaders of a run."""

from __future__ import annotations

from dataclasses import dataclass

from kdtrain.config import FitConfig
from kdtrain.data.augmentation import Augmentation, augmentation
from kdtrain.data.datasets import Dataset, Split, hold_out
from kdtrain.data.loader import Loader
from kdtrain.errors import UsageError
from kdtrain.ranks import Ranks


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

    def loader(split: Split, shuffle: int | None = None, augment: Augmentation | None = None) -> Loader:
        return Loader(
            dataset.normalization.apply(split.images),
            split.labels,
            config.batch_size * (ranks.batches if ranks else 1),
            num_classes=dataset.num_classes,
            seed=shuffle,
            device=device,
            augment=augment,
            ranks=ranks,
        )

    training, held_out = hold_out(dataset.train, config.val_size, seed)
    changed = augmentation(config.augment_for(network), dataset.normalization.background)
    train = loader(dataset.train.take(training[: config.limit_train]), seed, changed)
    test = loader(dataset.test)
    validation = loader(dataset.train.take(held_out)) if config.val_size else test
    return RunData(dataset, train, validation, test)
