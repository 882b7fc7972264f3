"""A stranger's picture in the form of a model's training images: the one way for ``infer`` and ``serve``."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from kdtrain.data.images.digit_photo import to_mnist
from kdtrain.data.images.image_file import Source, read_grey
from kdtrain.data.images.resize import read_image, to_channels
from kdtrain.errors import DataError


def shows_ink(dataset: str, image_shape: tuple[int, int, int]) -> bool:
    """Whether a data set shows ink on paper, as MNIST and IDX files, which are like it, do."""
    return image_shape[0] == 1 and ":" not in dataset  # IDX files have plain names


def model_input(source: Source, dataset: str, image_shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Reads a picture as the training images were: digits as MNIST shows them, all else as it is.

    Args:
        source: the picture.
        dataset: the name of the data that the model was trained on.
        image_shape: channels, height and width of the model's images.

    Returns:
        uint8 of ``image_shape``, not normalised.

    Raises:
        DataError: it cannot be read, or shows nothing on its paper.
    """
    channels, height, width = image_shape
    if not shows_ink(dataset, image_shape):
        return to_channels(read_image(source, (height, width)), channels)
    photo = read_grey(source)
    try:
        return to_mnist(photo, (height, width))[np.newaxis]
    except DataError as error:
        if isinstance(source, bytes):
            raise
        raise DataError(f"{source}: {error}") from error
