"""Makes a data set of arrays that somebody else made, once they are known to fit together."""

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
    """Makes a data set of four arrays that are checked against each other.

    Args:
        name: of the data set.
        arrays: training images, training labels, test images, test labels. Images are uint8
            (N, H, W) or (N, H, W, C), labels whole numbers (N,) or (N, 1).
        sources: where each of them comes from, for messages.
        classes: the classes' names; by default the labels, from 0 to the highest for training.

    Raises:
        DataError: they contradict each other, or kdtrain does not take such images.
    """
    train = _make_split(arrays[0], arrays[1], *sources[:2])
    test = _make_split(arrays[2], arrays[3], *sources[2:])
    if train.images.shape[1:] != test.images.shape[1:]:
        sizes = [_size(split.images) for split in (train, test)]
        raise DataError(
            f"training and test images differ in size: {sizes[0]} in {sources[0]}, "
            f"{sizes[1]} in {sources[2]}."
        )
    highest = int(train.labels.max())
    if highest == 0:
        raise DataError(f"{sources[1]} knows one class only: all its labels are 0; at least two are needed.")
    strangers = np.flatnonzero(test.labels > highest)
    if len(strangers):
        raise DataError(
            f"{sources[3]}: label {test.labels[strangers[0]]} of image {strangers[0]} is out of range: "
            f"the training labels go from 0 to {highest}."
        )
    if classes is not None and len(classes) <= highest:
        raise DataError(
            f"{sources[1]} has labels up to {highest}, but there are names for {len(classes)} classes only."
        )
    names = tuple(classes or (str(label) for label in range(highest + 1)))
    for split, source in ((train, sources[0]), (test, sources[2])):
        check_logits(len(split), len(names), source)
    counts = np.bincount(train.labels, minlength=len(classes or ()))
    if counts.min() == 0:
        number = int(counts.argmin())
        logger.info(f"{sources[1]}: no training image has the label {number}; labels count from 0 on.")
    return Dataset(name, train, test, names)


def check_classes(names: Any, source: str) -> list[str] | None:
    """Returns the names of classes as texts, or None if there are none.

    Raises:
        DataError: they are no texts, or not such as can be shown, or two are the same.
    """
    if names is None:
        return None
    try:
        listed = names.tolist() if isinstance(names, np.ndarray) and names.ndim == 1 else names
    except (SystemError, ValueError) as error:  # numbers that stand for no character
        raise DataError(f"{source} is damaged: it holds no texts.") from error
    if not isinstance(listed, (list, tuple)) or not all(isinstance(name, str) for name in listed):
        raise DataError(f"{source} must be a list of texts, one for each class.")
    if len(listed) > MOST_CLASSES:
        raise DataError(
            f"{source}: these are {len(listed):,} classes; kdtrain takes at most {MOST_CLASSES:,}."
        )
    hidden = [name for name in listed if not name.isprintable()]
    if hidden:
        raise DataError(f"{source}: the name {ascii(hidden[0])[:100]} cannot be shown; choose another.")
    if max(map(len, listed), default=0) > LONGEST_NAME:
        raise DataError(f"{source}: a name has more than {LONGEST_NAME} characters; choose a shorter one.")
    if len(set(listed)) < len(listed):
        raise DataError(f"{source} names two classes alike.")
    return list(listed)


def check_logits(images: int, classes: int, source: str) -> None:
    """Raises DataError if a table of a network's logits for a split's images is too large for the memory."""
    if images * classes > MOST_LOGITS:
        raise DataError(
            f"{source}: {images:,} images in {classes:,} classes are too many together: a network's answers "
            f"to all of them are kept in memory, at most {MOST_LOGITS:,} numbers. Use fewer of either."
        )


def _make_split(images: NDArray[Any], labels: NDArray[Any], *sources: str) -> Split:
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        remedy = " Scale them to 0..255, then use astype('uint8')." if images.dtype != np.uint8 else ""
        raise DataError(
            f"{sources[0]} is {_kind(images)}: images must be uint8 of shape (N, H, W) or "
            f"(N, H, W, C).{remedy}"
        )
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
    planes = images[:, np.newaxis] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    return Split(planes, labels.astype(np.int64))


def _remedy(labels: NDArray[Any]) -> str:
    """Returns how to make numbers of usual kinds of labels, as a sentence with a space before it."""
    if labels.dtype.kind == "U" and labels.ndim == 1:
        return " Use classes, labels = numpy.unique(labels, return_inverse=True)."
    if labels.ndim == 2 and labels.dtype.kind in "biuf":
        return " Of a column for each class, use argmax(1)."
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
