"""The data of a run, as its settings say, and its loaders: training, validation and test images."""

from __future__ import annotations

import dataclasses
import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Dataset, Split, Unlabelled, hold_out
from kdtrain.data.datasets import load_dataset
from kdtrain.data.download import default_cache_dir
from kdtrain.data.images.originals import originals
from kdtrain.data.loader import Loader, Source
from kdtrain.data.sampling import TransferDraw
from kdtrain.data.unlabelled import load_unlabelled, without_most_labels
from kdtrain.data.views import Views, views
from kdtrain.errors import UsageError, unknown_name_message
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.runtime.ranks import Ranks
from kdtrain.store.conditions import Copies

logger = logging.getLogger(__name__)

_USUALLY_HELD_OUT = 5000
_MOST_OF_FEW = 1000  # of the images that keep their labels


@dataclass(frozen=True, eq=False, repr=False)
class RunData:
    """The images of one run, in three loaders.

    Attributes:
        config: the settings that they were made with.
        dataset: all images.
        train: the training images of the network that the mode trains.
        validation: the images that choose the best epoch.
        test: the test images.
    """

    config: FitConfig
    dataset: Dataset
    train: Loader
    validation: Loader
    test: Loader

    def __repr__(self) -> str:
        images = ", ".join(f"{loader.num_images:,} {name}" for name, loader in self._loaders().items())
        return f"<RunData {self.dataset.name}: {images} images>"

    def _loaders(self) -> dict[str, Loader]:
        return {"training": self.train, "validation": self.validation, "test": self.test}


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


def check_sizes(dataset: Dataset, config: FitConfig) -> None:
    """Checks --val-size, --omit-class and --limit-train against the data.

    Raises:
        UsageError: one of them does not fit.
    """
    if config.val_size and dataset.validation is not None:
        raise UsageError(
            f"--val-size {config.val_size}: {dataset.name} has validation images of its own; leave it out."
        )
    network = "teacher" if config.mode == "teacher" else "student"
    training, _ = _divide(dataset, config, network, config.seed)
    if len(training) == 0:
        raise UsageError(
            "--omit-class leaves no training images, because all of them belong to the omitted classes."
        )
    if config.labels is None and config.limit_train is not None and config.limit_train > len(training):
        raise UsageError(
            f"--limit-train {config.limit_train}: there are only {len(training)} training images."
        )


def count_validation(dataset: Dataset, config: FitConfig) -> int:
    """Returns the number of validation images; 0 if the test set chooses the best epoch."""
    if config.val_size is None and dataset.validation is not None:
        return len(dataset.validation)
    return _held_out(dataset, config)


def count_training(dataset: Dataset, config: FitConfig) -> int:
    """Returns the number of training images of a teacher."""
    images = len(dataset.train) - _held_out(dataset, config)
    return images if config.labels is not None else min(images, config.limit_train or images)


def training_loader(
    dataset: Dataset, config: FitConfig, network: str, seed: int, device: str, ranks: Ranks | None = None
) -> Loader:
    """Returns the training images of a network, shuffled, in their variants.

    Args:
        dataset: the images.
        config: its settings decide the number of images, their augmentation and the batch size.
        network: ``teacher`` or ``student``.
        seed: seed of the held-out images and of the order of the others.
        device: device of the batches.
        ranks: the processes that share each batch; this process alone by default.

    Raises:
        UsageError: --val-size or --omit-class does not fit the data.
    """
    training, transfer = _training_images(dataset, config, network, seed)
    return _loader(
        dataset,
        dataset.train,
        config,
        device,
        ranks,
        indices=training,
        seed=seed,
        transfer=transfer,
        views=views(
            config.augment_for(network),
            dataset.normalization,
            config.views_for(network),
            seed if network == "teacher" or config.data_seed is None else config.data_seed,
        ),
        source=_source(dataset, training, transfer),
    )


def _training_images(
    dataset: Dataset, config: FitConfig, network: str, seed: int
) -> tuple[npt.NDArray[np.int64], Unlabelled | None]:
    """Returns the positions of a network's images with labels, (N,), and its images without."""
    training, _ = _divide(dataset, config, network, seed)
    if config.labels is None:  # else the limit is that of all images, with and without labels
        training = training[: config.limit_train]
    distils = network == "student" and config.mode in ("student_kd", "compare")
    return training, dataset.transfer if distils else None


def count_copies(dataset: Dataset, config: FitConfig) -> Copies | None:
    """Returns how many images are in several parts of the data, for the first seed; None if none is."""
    network = "teacher" if config.mode == "teacher" else "student"
    training, transfer = _training_images(dataset, config, network, config.seed)
    name, rows = validation_images(dataset, config, config.seed)
    test = dataset.test.digests
    held_out = test[:0] if name == "test" else dataset.split(name).digests[rows]
    seen = dataset.train.digests[training]
    if transfer is not None:
        seen = np.concatenate([seen, transfer.digests])
    pairs = ((test, seen), (test, held_out), (held_out, seen))
    first, second, third = (int(np.isin(images, others).sum()) for images, others in pairs)
    return Copies(first, second, third, len(test), len(held_out)) if first or second or third else None


def validation_loader(
    dataset: Dataset, config: FitConfig, seed: int, device: str, ranks: Ranks | None = None
) -> Loader:
    """Returns the images that choose the best epoch; the arguments are those of ``training_loader``.

    They are held out by seed, or the data set's own validation images. Without either, they are the
    test images.
    """
    name, indices = validation_images(dataset, config, seed)
    split = dataset.split(name)
    return _loader(dataset, split, config, device, ranks, indices if name == "train" else None)


def validation_images(dataset: Dataset, config: FitConfig, seed: int) -> tuple[str, npt.NDArray[np.int64]]:
    """Returns the split of the images that choose the best epoch, and their positions in it, (M,) int64."""
    held_out = _held_out(dataset, config)
    if held_out:
        return "train", _hold_out(dataset, config, held_out, seed)[1]
    name = "validation" if dataset.validation is not None and config.val_size is None else "test"
    return name, np.arange(len(dataset.split(name)))


def test_loader(dataset: Dataset, config: FitConfig, device: str, ranks: Ranks | None) -> Loader:
    """Returns the test images in order; the arguments are those of ``training_loader``."""
    return _loader(dataset, dataset.test, config, device, ranks)


def prepare(
    dataset: Dataset, config: FitConfig, network: str, seed: int, device: str, ranks: Ranks | None = None
) -> RunData:
    """Returns all three loaders of a run; the arguments are those of ``training_loader``."""
    return RunData(
        config,
        dataset,
        train=training_loader(dataset, config, network, seed, device, ranks),
        validation=validation_loader(dataset, config, seed, device, ranks),
        test=test_loader(dataset, config, device, ranks),
    )


def _loader(
    dataset: Dataset,
    split: Split,
    config: FitConfig,
    device: str,
    ranks: Ranks | None,
    indices: npt.NDArray[np.int64] | None = None,
    *,
    seed: int | None = None,
    views: Views | None = None,
    source: Source | None = None,
    transfer: Unlabelled | None = None,
) -> Loader:
    """Returns the normalised images of a split, those at ``indices`` (N,) or all.

    Images of ``transfer`` follow them.
    """
    draw = None
    if transfer is None:
        inputs = split.normalized(dataset.normalization, indices)
    else:
        assert indices is not None, "they join training images only"
        inputs = split.joined(dataset.normalization, indices, transfer)
        # All seeds of a comparison draw the same images in the same variants, so the teacher runs on fewer.
        draw = TransferDraw(len(transfer), config.transfer_share, config.shared_data_seed)
    return Loader(
        inputs,
        split.labels if indices is None else split.labels[indices],
        config.batch_size * (ranks.size if ranks else 1),
        num_classes=dataset.num_classes,
        seed=seed,
        device=device,
        views=views,
        source=source,
        ranks=ranks,
        classes=dataset.classes,
        transfer=draw,
        originals=originals(dataset, split, indices, transfer),
        balance="none" if seed is None else config.balance,
    )


def _source(dataset: Dataset, training: npt.NDArray[np.int64], transfer: Unlabelled | None) -> Source:
    """Returns the source of training images: the training split, followed by images without labels."""
    split = len(dataset.train)
    if transfer is None:
        return Source(dataset.fingerprint, training, split)
    fingerprint = hashlib.sha256(f"{dataset.fingerprint} {transfer.fingerprint}".encode()).hexdigest()
    numbers = np.concatenate([training, split + np.arange(len(transfer))])
    return Source(fingerprint, numbers, split + len(transfer))


def _divide(
    dataset: Dataset, config: FitConfig, network: str, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the indices of a network's training images and of the held-out images, (N,) and (M,).

    --omit-class removes training images of a student only. Its best epoch is chosen on images of all
    classes, because the held-out accuracy measures the whole task.
    """
    training, held_out = _hold_out(dataset, config, _held_out(dataset, config), seed)
    for name in config.omit_class:
        if name not in dataset.classes:
            raise UsageError(f"--omit-class: {unknown_name_message('class', name, dataset.classes)}")
    if network == "student" and config.omit_class:
        omitted = [dataset.classes.index(name) for name in config.omit_class]
        training = training[~np.isin(dataset.train.labels[training], omitted)]
    return training, held_out


def _hold_out(
    dataset: Dataset, config: FitConfig, size: int, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Returns the indices of training images and of ``size`` held-out images.

    Few labelled images are divided class by class, and in the same way for all networks of a comparison.
    """
    if config.labels is None:
        return hold_out(dataset.train, size, seed)
    return hold_out(dataset.train, size, config.shared_data_seed, by_class=True)


def _held_out(dataset: Dataset, config: FitConfig) -> int:
    """Returns the number of training images that are held out for validation."""
    if config.val_size is not None:
        return config.val_size
    if config.labels is not None and dataset.validation is None:
        return max(min(_MOST_OF_FEW, len(dataset.train) // 5), len(np.unique(dataset.train.labels)))
    return 0 if dataset.validation is not None else min(_USUALLY_HELD_OUT, len(dataset.train) // 6)
