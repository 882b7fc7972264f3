"""Images without labels: a folder, an IDX file, an ``.npz`` file, or training images by ``--labels``."""

from __future__ import annotations

import dataclasses
import logging
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.checks import as_planes, check_logits
from kdtrain.data.dataset import Dataset, PictureFile, Split, Unlabelled, class_by_class
from kdtrain.data.folder import pictures_in, report_failures, stamp
from kdtrain.data.idx import read_idx
from kdtrain.data.images.decode_folder import decode
from kdtrain.data.images.resize import upright_size
from kdtrain.data.npz import load_only_array
from kdtrain.errors import DataError, UsageError, size_text

logger = logging.getLogger(__name__)


_KEEP = 0x4C424C  # a separate stream of random numbers, independent of other uses of the seed


def without_most_labels(dataset: Dataset, labels: str, seed: int, limit: int | None = None) -> Dataset:
    """Returns a data set in which only some training images have labels, drawn equally from each class.

    Args:
        dataset: the data set; its validation and test images keep their labels.
        labels: value of ``--labels``: a number of images, or a percentage of the training images.
        seed: the same seed and number give the same images.
        limit: how many training images remain, those with and without labels together; all by default.

    Returns:
        The images with labels as ``train``, and the others as ``transfer``.

    Raises:
        UsageError: there are not as many images, or too few for each class.
    """
    count, classes = len(dataset.train), len(np.unique(dataset.train.labels))
    number = round(float(labels[:-1]) / 100 * count) if labels.endswith("%") else int(labels)
    given = f"--labels {labels}" + (f" ({number} images)" if labels.endswith("%") else "")
    if number >= count:
        raise UsageError(
            f"{given}: {dataset.name} has {count:,} training images, and all have labels: give a smaller "
            "number."
        )
    if number < 2 * classes:
        raise UsageError(
            f"{given}: each of the {classes} classes needs two images with labels, one to train on and one "
            f"to hold out: give {2 * classes} or more."
        )
    if limit is not None and limit < number:
        raise UsageError(f"{given} are more than --limit-train {limit} leaves: give a smaller number.")
    random = np.random.default_rng([seed, _KEEP])
    order = class_by_class(dataset.train.labels, random)
    others = random.permutation(order[number:])[: None if limit is None else limit - number]
    images, files = dataset.train.images, dataset.train.files
    transfer = Unlabelled(dataset.name, images, np.sort(others), files=files) if len(others) else None
    train = dataset.train.take(np.sort(order[:number]))
    return dataclasses.replace(dataset, train=train, transfer=transfer, without_labels=len(others))


def load_unlabelled(
    path: Path,
    dataset: Dataset,
    cache: Path,
    *,
    image_size: int | None = None,
    skip_corrupt: bool = False,
    most_images: int | None = None,
    allow_test_images: bool = False,
) -> Unlabelled:
    """Returns the images in a folder or a file, of the shape of a data set's images.

    Image files are read in the order of their names, those of subfolders are left out. They become grey or
    coloured as the data set's are. Arrays in an IDX or ``.npz`` file must have its channels.

    Args:
        path: a folder of image files; an ``.npz`` file with one array, (K, H, W) or (K, H, W, C) uint8; or an
            IDX file of images, plain or gzipped.
        dataset: the data set.
        cache: a folder for the pixels of image files, if they do not fit in memory.
        image_size: height and width, in pixels, that image files are scaled to; by default they must have the
            size of the data set's images.
        skip_corrupt: leaves out image files that cannot be read.
        most_images: how many image files are read, evenly spread; all by default.
        allow_test_images: whether test images of the data set may be among them.

    Raises:
        DataError: the path cannot be read, or holds no images, images of another shape, or test images.
    """
    files: tuple[PictureFile, ...] = ()
    if os.path.isdir(path):
        images, files = _read_folder(path, dataset, cache, image_size, skip_corrupt, most_images)
    else:
        array = load_only_array(path) if path.suffix == ".npz" else read_idx(path)
        images = as_planes(array, f"--transfer-data {path}")
    if len(images) == 0:
        raise DataError(f"--transfer-data {path} is empty: it holds no image.")
    if images.shape[1:] != dataset.image_shape:
        raise DataError(
            f"--transfer-data {path} holds images of {size_text(images.shape[1:])}, but those of "
            f"{dataset.name} are {size_text(dataset.image_shape)} (channels, height, width): give images of "
            "that shape."
        )
    check_logits(len(dataset.train) + len(images), dataset.num_classes, str(path))
    unlabelled = Unlabelled(str(path), images, files=files)
    if not allow_test_images:
        _check_unseen(unlabelled, dataset.test)
    return unlabelled


def _check_unseen(unlabelled: Unlabelled, test: Split) -> None:
    """Raises DataError if some of the images are test images."""
    copies = unlabelled.digests[np.isin(unlabelled.digests, test.digests)]
    if len(copies):
        first = int(np.flatnonzero(test.digests == copies[0])[0])
        name = test.names[first] if test.names else f"test image {first}"
        raise DataError(
            f"--transfer-data {unlabelled.name}: {len(copies):,} of its {len(unlabelled):,} images are test "
            f"images (the first is {name}), so the test would not be one on new images: leave them out, or "
            "allow them with --allow-test-images."
        )


def _read_folder(
    folder: Path,
    dataset: Dataset,
    cache: Path,
    image_size: int | None,
    skip_corrupt: bool,
    most_images: int | None,
) -> tuple[NDArray[np.uint8], tuple[PictureFile, ...]]:
    """Returns the pictures of a folder, (K, C, H, W), and their files, as ``load_unlabelled`` does."""
    channels, *size = dataset.image_shape
    height, width = size
    files = pictures_in(folder)
    if not files:
        raise DataError(f"--transfer-data {folder} holds no image file; images of class folders have labels.")
    if most_images is not None:
        files = files[:: -(-len(files) // most_images)]
    stamped = [stamp(file) for file in files]
    decoded = decode(files, (height, width), image_size is not None, cache)
    for index in sorted(decoded.failures):
        if isinstance(decoded.failures[index], UsageError):  # of another size
            raise DataError(
                f"{files[index]} is {size_text(upright_size(files[index]))}, but images of {dataset.name} "
                f"are {size_text(size)}: scale it, or with --dataset folder:DIR give --image-size."
            )
    report_failures(decoded, files, folder, skip_corrupt)
    pixels, readable = decoded.in_channels(channels), decoded.readable
    if not readable.any():
        raise DataError(f"--transfer-data {folder}: none of the images can be read.")
    kept = tuple(stamped[index] for index in np.flatnonzero(readable).tolist())
    return (pixels if readable.all() else pixels[readable]), kept
