"""Checks of users' arrays and class names, from which a data set is assembled."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.dataset import Dataset, Split
from kdtrain.errors import DataError
from kdtrain.runtime.limits import CHANNELS, LARGEST_SIDE, LONGEST_NAME, MOST_CLASSES, MOST_LOGITS

logger = logging.getLogger(__name__)


def assemble(
    name: str, arrays: Sequence[NDArray[Any]], sources: Sequence[str], classes: Sequence[str] | None
) -> Dataset:
    """Returns a data set of four arrays, after checking them against each other.

    Args:
        name: the name of the data set.
        arrays: training images, training labels, test images, test labels. Images are (N, H, W) or
            (N, H, W, C) uint8, labels are whole numbers, (N,) or (N, 1).
        sources: the origin of each array, for messages.
        classes: the names of the classes; by default the numbers from 0 to the highest training label.

    Raises:
        DataError: the arrays contradict each other, or kdtrain does not take such images.
    """
    train = _make_split(arrays[0], arrays[1], *sources[:2])
    test = _make_split(arrays[2], arrays[3], *sources[2:])
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"training and test images differ in size: {_size(train.images)} in {sources[0]}, "
            f"{_size(test.images)} in {sources[2]}."
        )
    highest = int(train.labels.max())
    if highest == 0:
        raise DataError(f"{sources[1]} has one class only: all its labels are 0. At least two are needed.")
    out_of_range = np.flatnonzero(test.labels > highest)
    if len(out_of_range):
        image = out_of_range[0]
        raise DataError(
            f"{sources[3]}: label {test.labels[image]} of image {image} is out of range: "
            f"the training labels go from 0 to {highest}."
        )
    if classes is not None and len(classes) <= highest:
        raise DataError(
            f"{sources[1]} has labels up to {highest}, but only {len(classes)} classes have names."
        )
    names = tuple(classes or (str(label) for label in range(highest + 1)))
    for split, source in ((train, sources[0]), (test, sources[2])):
        check_logits(len(split), len(names), source)
    counts = np.bincount(train.labels, minlength=len(classes or ()))
    if counts.min() == 0:
        unused = int(counts.argmin())
        logger.info(f"{sources[1]}: no training image has the label {unused}. Labels start at 0.")
    return Dataset(name, train, test, names)


def check_classes(names: Any, source: str) -> list[str] | None:
    """Returns the names of classes as a list of texts, or None if there are none.

    Args:
        names: a list, a tuple, an array of texts, or None; from a user's file.
        source: the origin of the names, for messages.

    Raises:
        DataError: a name is no text, cannot be shown, is too long, or occurs twice.
    """
    if names is None:
        return None
    try:
        listed = names.tolist() if isinstance(names, np.ndarray) and names.ndim == 1 else names
    except (SystemError, ValueError) as error:  # the array holds numbers of no character
        raise DataError(f"{source} is damaged: it does not hold texts.") from error
    if not isinstance(listed, (list, tuple)) or not all(isinstance(name, str) for name in listed):
        raise DataError(f"{source} must be a list of texts, one for each class.")
    if len(listed) > MOST_CLASSES:
        raise DataError(f"{source} holds {len(listed):,} classes; kdtrain takes at most {MOST_CLASSES:,}.")
    unprintable = [name for name in listed if not name.isprintable()]
    if unprintable:
        raise DataError(f"{source}: the name {ascii(unprintable[0])[:100]} cannot be shown; choose another.")
    if max(map(len, listed), default=0) > LONGEST_NAME:
        raise DataError(f"{source}: a name has more than {LONGEST_NAME} characters; choose a shorter one.")
    if len(set(listed)) < len(listed):
        raise DataError(f"{source} has the same name for two classes.")
    return list(listed)


def check_logits(images: int, classes: int, source: str) -> None:
    """Raises DataError if the logits of all images of a split do not fit in memory."""
    if images * classes > MOST_LOGITS:
        raise DataError(
            f"{source}: {images:,} images in {classes:,} classes have {images * classes:,} logits; kdtrain "
            f"keeps at most {MOST_LOGITS:,} in memory. Use fewer images or fewer classes."
        )


def as_planes(images: NDArray[Any], source: str) -> NDArray[np.uint8]:
    """Returns images (N, H, W) or (N, H, W, C) as planes, (N, C, H, W), a view.

    Args:
        images: an array from a user's file.
        source: its origin, for messages.

    Raises:
        DataError: these are not images.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        remedy = " Scale them to 0..255, then use astype('uint8')." if images.dtype != np.uint8 else ""
        raise DataError(
            f"{source} is {_kind(images)}: images must be uint8 of shape (N, H, W) or (N, H, W, C).{remedy}"
        )
    return images[:, np.newaxis] if images.ndim == 3 else images.transpose(0, 3, 1, 2)


def _make_split(images: NDArray[Any], labels: NDArray[Any], *sources: str) -> Split:
    planes = as_planes(images, sources[0])
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.dtype.kind not in "iu" or labels.ndim != 1:
        raise DataError(
            f"{sources[1]} is {_kind(labels)}: labels must be whole numbers of shape (N,).{_remedy(labels)}"
        )
    if len(images) != len(labels):
        raise DataError(f"{sources[0]} holds {len(images)} images, but {sources[1]} {len(labels)} labels.")
    if len(images) == 0:
        raise DataError(f"{sources[0]} is empty: it holds no image.")
    _check_shape(images.shape, sources[0])
    if labels.min() < 0 or labels.max() >= MOST_CLASSES:
        wrong = int(np.flatnonzero((labels < 0) | (labels >= MOST_CLASSES))[0])
        raise DataError(
            f"{sources[1]}: label {labels[wrong]} of image {wrong} is not one of 0 to {MOST_CLASSES - 1}."
        )
    return Split(planes, labels.astype(np.int64))


def _remedy(labels: NDArray[Any]) -> str:
    """Returns a sentence on how to convert the usual kinds of labels, after a space; or no text."""
    if labels.dtype.kind == "U" and labels.ndim == 1:
        return " Use classes, labels = numpy.unique(labels, return_inverse=True)."
    if labels.ndim == 2 and labels.dtype.kind in "biuf":
        return " For one-hot labels, use argmax(1)."
    return " Use astype('int64')." if labels.ndim == 1 and labels.dtype.kind in "bf" else ""


def _check_shape(shape: tuple[int, ...], source: str) -> None:
    height, width, *channels = shape[1:]
    if not (1 <= height <= LARGEST_SIDE and 1 <= width <= LARGEST_SIDE):
        raise DataError(
            f"{source} holds images of {height}x{width}; "
            f"kdtrain takes 1x1 to {LARGEST_SIDE}x{LARGEST_SIDE} pixels."
        )
    if channels and channels[0] not in CHANNELS:
        remedy = " Use transpose(0, 2, 3, 1)." if height in CHANNELS else ""
        raise DataError(
            f"{source} has {channels[0]} channels; images must be grey (1) or RGB (3), "
            f"with the channels in the last dimension.{remedy}"
        )


def _size(images: NDArray[np.uint8]) -> str:
    _, channels, height, width = images.shape
    return f"{height}x{width}" + (f" in {channels} channels" if channels > 1 else "")


def _kind(array: NDArray[Any]) -> str:
    return f"{array.dtype} of shape {array.shape}"
