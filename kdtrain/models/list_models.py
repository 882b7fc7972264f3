"""The list of networks with their parameters and multiply-adds."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from kdtrain.data.datasets import load_dataset
from kdtrain.errors import UsageError
from kdtrain.models.networks import ImageShape
from kdtrain.models.registry import ARCHITECTURES, build_model, count_multiply_adds, count_parameters
from kdtrain.models.zoo import CLASSIFIERS, PREFIX
from kdtrain.runtime.bars import progress_bar
from kdtrain.runtime.limits import LARGEST_SIDE


@dataclass(frozen=True)
class NetworkInfo:
    """A network for images of some shape.

    Attributes:
        arch: its architecture.
        parameters: number of trainable values; None if it cannot be built.
        multiply_adds: multiply-adds of its linear layers and convolutions for one image; None if it cannot be
            built.
        error: the reason why it cannot be built for these images; None if it can.
    """

    arch: str
    parameters: int | None = None
    multiply_adds: int | None = None
    error: str | None = None


def list_models(
    *archs: str,
    dataset: str = "mnist",
    data_dir: Path | str | None = None,
    image_shape: Sequence[int] | None = None,
) -> list[NetworkInfo]:
    """Returns networks with their parameters and multiply-adds, as ``kdtrain models`` lists them.

    Args:
        archs: names, MODULE:FACTORY or FILE.py:FACTORY, or patterns such as ``flowvision:resnet*``; by
            default kdtrain's own networks.
        dataset: the data set whose image shape and number of classes the networks are built for.
        data_dir: a folder to read in place of built-in or downloaded files.
        image_shape: channels, height and width, in place of a data set's; with 10 classes.

    Raises:
        KdtrainError: there is no such network or data set.
    """
    shape, classes = images_for(dataset, None if data_dir is None else Path(data_dir), image_shape)
    return measure_networks(archs, shape, classes)


def measure_networks(archs: Sequence[str], shape: ImageShape, classes: int) -> list[NetworkInfo]:
    """Returns networks for images of a shape; the arguments are those of ``list_models``."""
    names = _expand(archs or tuple(ARCHITECTURES))
    bar = progress_bar("networks", len(names), "network", names)
    return [_measure(arch, shape, classes) for arch in bar]


def images_for(
    dataset: str, data_dir: Path | None, image_shape: Sequence[int | str] | None
) -> tuple[ImageShape, int]:
    """Returns the shape of the images and the number of classes."""
    if image_shape is None:
        data = load_dataset(dataset, data_dir)
        return data.image_shape, data.num_classes
    sizes = [size for size in image_shape if isinstance(size, int) and 1 <= size <= LARGEST_SIDE]
    if len(sizes) != 3 or len(image_shape) != 3:
        raise UsageError(
            f"--image-shape {','.join(map(str, image_shape))}: give channels, height and width, each from "
            f"1 to {LARGEST_SIDE}, such as 3,32,32."
        )
    return (sizes[0], sizes[1], sizes[2]), 10


def _expand(words: Sequence[str]) -> list[str]:
    """Returns the architectures that match names and patterns."""
    archs = [*ARCHITECTURES, *(PREFIX + name for name in CLASSIFIERS)]
    chosen: list[str] = []
    for word in words:
        matching = fnmatch.filter(archs, word) if set(word) & set("*?[") else [word]
        if not matching:
            raise UsageError(f"there is no network like {word!r}.")
        chosen += matching
    return list(dict.fromkeys(chosen))


def _measure(arch: str, shape: ImageShape, classes: int) -> NetworkInfo:
    try:
        model = build_model(arch, shape, classes)
    except UsageError as error:
        if arch not in ARCHITECTURES and arch.removeprefix(PREFIX) not in CLASSIFIERS:
            raise
        return NetworkInfo(arch, error=str(error))  # not made for images of this size
    return NetworkInfo(arch, count_parameters(model), count_multiply_adds(model, shape))
