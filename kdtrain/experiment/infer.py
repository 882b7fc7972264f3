"""The classification of single images by a trained model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from kdtrain.data.images.image_file import open_image
from kdtrain.data.images.model_input import model_input
from kdtrain.data.images.resize import to_rgb
from kdtrain.deploy.opening import open_data, open_model
from kdtrain.deploy.predictor import Predictor
from kdtrain.errors import UsageError, clipped
from kdtrain.metrics.tempered_softmax import tempered_softmax
from kdtrain.report.prediction import prediction_figure
from kdtrain.report.style import save_figure
from kdtrain.runtime.locations import short_name
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.value_checks import MOST_NUMBER, check_value, positive
from kdtrain.store.card import ModelCard


@dataclass(frozen=True)
class _InputImage:
    """An image to classify.

    Attributes:
        name: the image's name in the output.
        label: the image's part of the drawing's file name.
        pixels: (C, H, W) uint8, the network's input.
        original: the photo or scan that ``pixels`` were made from; None for an image of a data set.
        truth: the true class, if it is known.
    """

    name: str
    label: str
    pixels: npt.NDArray[np.uint8]
    original: Image.Image | None = None
    truth: str | None = None


@dataclass(frozen=True, eq=False, repr=False)
class Prediction:
    """The classes that a model gives an image.

    Attributes:
        image: the image's name: its file, or its place in the test set.
        label: a short name, different for each image of a call.
        card: the card of the model.
        model: the model's file.
        logits: (classes,) float64.
        temperature: temperature of ``softened``.
        pixels: (C, H, W) uint8, the network's input.
        original: the photo or scan that ``pixels`` were made from; None for an image of a data set.
        truth: the true class, if it is known.
    """

    image: str
    label: str
    card: ModelCard
    model: Path
    logits: npt.NDArray[np.float64]
    temperature: float
    pixels: npt.NDArray[np.uint8]
    original: Image.Image | None = None
    truth: str | None = None

    @property
    def prediction(self) -> str:
        """The most probable class."""
        return self.card.classes[int(self.logits.argmax())]

    @property
    def probabilities(self) -> dict[str, float]:
        """The probability of each class, 0 to 1."""
        return self._probabilities(1.0)

    @property
    def softened(self) -> dict[str, float]:
        """The probability of each class at ``temperature``."""
        return self._probabilities(self.temperature)

    def figure(self) -> Figure:
        """Returns a drawing of the image and of its probabilities."""
        card, best = self.card, self.probabilities[self.prediction]
        title = f"{self.image}: {self.prediction} with {best:.1%} ({card.mode}, {short_name(card.arch)})"
        return prediction_figure(
            self.pixels, self.logits, card.classes, self.temperature, title, self.original, self.truth
        )

    def save(self, path: Path | str) -> None:
        """Writes the drawing as an image file."""
        save_figure(self.figure(), Path(path))

    def __repr__(self) -> str:
        best = self.probabilities[self.prediction]
        return f"<Prediction of {self.image}: {self.prediction} with {best:.1%}>"

    def _probabilities(self, temperature: float) -> dict[str, float]:
        values = tempered_softmax(self.logits, temperature)
        return dict(zip(self.card.classes, values.tolist(), strict=True))


def infer(
    checkpoint: Path | str,
    *images: Path | str,
    picture_index: int | None = None,
    temperature: float = 10.0,
    model_type: str = "student_kd",
    arch: str | None = None,
    dataset: str | None = None,
    data_dir: Path | str | None = None,
    skip_corrupt: bool = False,
    device: str = "auto",
) -> list[Prediction]:
    """Classifies images, as ``kdtrain infer`` does, and draws nothing.

    Args:
        checkpoint: a .safetensors file, a OneFlow checkpoint directory, or an .onnx file from ``export``.
        images: image files; for a model of MNIST, photos or scans of one digit each.
        picture_index: classify this image of the test set, counted from 0, in place of files.
        temperature: temperature, above 0, of the softened probabilities.
        model_type: mode of a OneFlow checkpoint directory, which does not say it.
        arch: the architecture that the model must have; code of the user's runs only if this names it.
        dataset: the data set of ``picture_index``; by default the one that the model was trained on.
        data_dir: a folder to read in place of built-in or downloaded files.
        skip_corrupt: leave out image files of the data set that cannot be read.
        device: auto, cpu or cuda.

    Returns:
        A prediction for each image, in their order.

    Raises:
        KdtrainError: the model, an image or the data cannot be read, or do not fit together.
    """
    check_images(images, picture_index, temperature)
    model = open_model(Path(checkpoint), arch, mode=model_type, device=resolve_device(device))
    if picture_index is None:
        inputs = [_from_file(path, label, model.card) for path, label in _labelled(list(map(Path, images)))]
    else:
        folder = None if data_dir is None else Path(data_dir)
        inputs = [_from_test_set(picture_index, model, dataset, folder, skip_corrupt=skip_corrupt)]
    return [_predict(image, model, temperature) for image in inputs]


def check_images(images: Sequence[Path | str], picture_index: int | None, temperature: float) -> None:
    """Raises UsageError if no images are named, or the temperature is not allowed."""
    if (picture_index is None) == (not images):
        raise UsageError("name image files, or an image of the test set with --picture-index N.")
    check_value("--temperature", temperature, positive(MOST_NUMBER), float)


def _from_test_set(
    index: int, model: Predictor, dataset: str | None, data_dir: Path | None, *, skip_corrupt: bool
) -> _InputImage:
    data = open_data(model, dataset, data_dir, skip_corrupt=skip_corrupt)
    if not 0 <= index < len(data.test):
        raise UsageError(
            f"--picture-index {clipped(index)}: the test set has images 0 to {len(data.test) - 1}."
        )
    truth = data.classes[int(data.test.labels[index])]
    return _InputImage(f"test image {index}", str(index), data.test.images[index], truth=truth)


def _from_file(path: Path, label: str, card: ModelCard) -> _InputImage:
    pixels = model_input(path, card.dataset, card.image_shape)
    original = open_image(path, lambda image: to_rgb(ImageOps.exif_transpose(image)))
    return _InputImage(str(path), label, pixels, original)


def _predict(image: _InputImage, model: Predictor, temperature: float) -> Prediction:
    logits = model.logits(image.pixels[np.newaxis])[0].astype(np.float64)
    return Prediction(
        image.name,
        image.label,
        model.card,
        model.path,
        logits,
        temperature,
        image.pixels,
        image.original,
        image.truth,
    )


def _labelled(paths: list[Path]) -> list[tuple[Path, str]]:
    """Returns each file with a label, numbered where names repeat, so that no drawing replaces another."""
    names = [path.stem for path in paths]
    return [
        (path, path.stem if names.count(path.stem) == 1 else f"{path.stem}_{number}")
        for number, path in enumerate(paths, start=1)
    ]
