"""A user's image in the form of a model's training images, for ``infer`` and ``serve``."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.images.digit_photo import to_mnist
from kdtrain.data.images.image_file import Source, read_grey
from kdtrain.data.images.resize import read_image, to_channels
from kdtrain.errors import DataError


def shows_ink(dataset: str, image_shape: tuple[int, int, int]) -> bool:
    """Returns whether a data set shows bright ink on black paper, as MNIST does.

    All grey images in IDX files are taken to be like MNIST's.

    Args:
        dataset: the name of the data.
        image_shape: channels, height, width.
    """
    return image_shape[0] == 1 and ":" not in dataset  # names of other kinds have a colon


def shows_digits(dataset: str, image_shape: tuple[int, int, int], classes: Sequence[str]) -> bool:
    """Returns whether a data set shows digits in ink: its classes are numbers.

    Args:
        dataset: the name of the data.
        image_shape: channels, height, width.
        classes: the names of the classes.
    """
    return shows_ink(dataset, image_shape) and all(map(str.isdecimal, classes))


def model_input(source: Source, dataset: str, image_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Reads an image in the form of the training images.

    A photo of a digit is brought to MNIST's form; any other image is only scaled and cropped.

    Args:
        source: the image.
        dataset: the name of the data that the model was trained on.
        image_shape: channels, height and width of the model's images.

    Returns:
        ``image_shape`` uint8, not normalised.

    Raises:
        DataError: the image cannot be read, or shows nothing but paper.
    """
    channels, height, width = image_shape
    if not shows_ink(dataset, image_shape):
        return to_channels(read_image(source, (height, width)), channels)
    grey = read_grey(source)
    try:
        return to_mnist(grey, (height, width))[np.newaxis]
    except DataError as error:
        if isinstance(source, bytes):
            raise
        raise DataError(f"{source}: {error}") from error
