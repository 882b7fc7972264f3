"""The classification of single images by a trained model."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from kdtrain.data.folder import pictures_in
from kdtrain.data.images.image_file import on_paper, open_image, paper_of
from kdtrain.data.images.model_input import model_input, shows_digits, shows_ink
from kdtrain.data.images.resize import to_rgb
from kdtrain.deploy.predict.opening import find_model, open_data, open_model
from kdtrain.deploy.predict.predictor import Predictor
from kdtrain.errors import DataError, UsageError, clipped
from kdtrain.metrics.probabilities import tempered_softmax
from kdtrain.report.prediction import ORIGINAL_PIXELS, percent, prediction_figure
from kdtrain.report.style import save_figure
from kdtrain.runtime.locations import missing_path_text, short_name
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.value_checks import MOST_NUMBER, above_0, check_value
from kdtrain.store.card import ModelCard

_LEAST_PROBABILITY = 0.6  # of the most probable class of a digit
_INK = 64  # grey levels of 255
_SECOND_PART = 0.2  # share of the ink, from which on a part may be a digit
_WIDEST = 1.7  # width of a digit's ink as a multiple of its height


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
        original: the photo or scan that ``pixels`` were made from, reduced; None for an image of a data set.
        original_size: its width and height in pixels before.
        truth: the true class, if it is known.
        warning: why the image is probably nothing that the model can recognise; None if it seems to be.
    """

    image: str
    label: str
    card: ModelCard
    model: Path
    logits: npt.NDArray[np.float64]
    temperature: float
    pixels: npt.NDArray[np.uint8]
    original: Image.Image | None = None
    original_size: tuple[int, int] | None = None
    truth: str | None = None
    warning: str | None = None

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
        title = f"{self.image}: {self.prediction}, {percent(best)} ({card.mode}, {short_name(card.arch)})"
        return prediction_figure(
            self.pixels,
            self.logits,
            card.classes,
            self.temperature,
            title,
            self.original,
            self.truth,
            original_size=self.original_size,
            warning=self.warning,
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


@dataclass(frozen=True)
class FailedImage:
    """An image file that could not be read.

    Attributes:
        image: the file.
        error: the reason.
    """

    image: str
    error: DataError


def infer(
    checkpoint: Path | str,
    *images: Path | str,
    picture_index: int | None = None,
    temperature: float | None = None,
    model_type: str = "student_kd",
    arch: str | None = None,
    dataset: str | None = None,
    data_dir: Path | str | None = None,
    skip_corrupt: bool = False,
    device: str = "auto",
) -> list[Prediction]:
    """Classifies images, as ``kdtrain infer`` does, and draws nothing.

    Args:
        checkpoint: a .safetensors file, a OneFlow checkpoint directory, an .onnx file from ``export``, or a
            folder with the model of ``model_type``.
        images: image files, and folders of image files, which are read in order of name; for a model of
            MNIST, photos or scans of one digit each.
        picture_index: classify this image of the test set, counted from 0, in place of files.
        temperature: temperature, above 0, of the softened probabilities; by default the one that the model
            was distilled with, or 4.
        model_type: mode of the model in a folder, and of a OneFlow checkpoint directory, which does not say
            it.
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
    folder = None if data_dir is None else Path(data_dir)
    path = find_model(Path(checkpoint), model_type, arch=arch, dataset=dataset, data_dir=folder)
    model = open_model(path, arch, mode=model_type, device=resolve_device(device))
    if picture_index is not None:
        return [predict_test_image(model, picture_index, temperature, dataset, folder, skip_corrupt)]
    predictions = []
    for prediction in predict_files(model, image_files(images), temperature):
        if isinstance(prediction, FailedImage):
            raise prediction.error
        predictions.append(prediction)
    return predictions


def check_images(images: Sequence[Path | str], picture_index: int | None, temperature: float | None) -> None:
    """Raises UsageError if no images are named, or the temperature is not allowed."""
    if (picture_index is None) == (not images):
        raise UsageError("name image files, or an image of the test set with --picture-index N.")
    if temperature is not None:
        check_value("--temperature", temperature, above_0(MOST_NUMBER), float)


def image_files(images: Sequence[Path | str]) -> list[Path]:
    """Returns image files, with those of a folder, in order of name, in the place of the folder.

    Raises:
        DataError: a folder cannot be read, or holds no image file.
    """
    files: list[Path] = []
    for path in map(Path, images):
        inside = pictures_in(path) if os.path.isdir(path) else [path]
        if not inside:
            raise DataError(f"the folder {missing_path_text(path)} holds no image file.")
        files += inside
    return files


def predict_test_image(
    model: Predictor,
    index: int,
    temperature: float | None = None,
    dataset: str | None = None,
    data_dir: Path | None = None,
    skip_corrupt: bool = False,
) -> Prediction:
    """Returns the prediction of an image of the test set; the arguments are those of ``infer``."""
    data = open_data(model, dataset, data_dir, skip_corrupt=skip_corrupt)
    if not 0 <= index < len(data.test):
        raise UsageError(
            f"--picture-index {clipped(index)}: the test set has images 0 to {len(data.test) - 1}."
        )
    truth = data.classes[int(data.test.labels[index])]
    image = data.test.images[index]
    return _predict(model, temperature, f"test image {index}", str(index), image, truth=truth)


def predict_files(
    model: Predictor, files: Sequence[Path], temperature: float | None = None
) -> Iterator[Prediction | FailedImage]:
    """Yields a prediction for each file, in their order; of a file that cannot be read, the reason.

    Args:
        model: the model.
        files: image files.
        temperature: temperature of the softened probabilities; by default the model's own.
    """
    for path, label in _labelled(files):
        try:
            pixels = model_input(path, model.card.dataset, model.card.image_shape)
            original, size = _original(path, model.card)
        except DataError as error:
            yield FailedImage(str(path), error)
        else:
            yield _predict(model, temperature, str(path), label, pixels, original, size)


def _original(path: Path, card: ModelCard) -> tuple[Image.Image, tuple[int, int]]:
    """Returns an image file, reduced, and its width and height before."""
    ink = shows_ink(card.dataset, card.image_shape)

    def reduced(image: Image.Image) -> tuple[Image.Image, tuple[int, int]]:
        upright = ImageOps.exif_transpose(image)
        shown = to_rgb(on_paper(upright, paper_of(upright)) if ink else upright)
        shown.thumbnail((ORIGINAL_PIXELS, ORIGINAL_PIXELS))
        return shown, upright.size

    return open_image(path, reduced)


def _predict(
    model: Predictor,
    temperature: float | None,
    image: str,
    label: str,
    pixels: npt.NDArray[np.uint8],
    original: Image.Image | None = None,
    size: tuple[int, int] | None = None,
    truth: str | None = None,
) -> Prediction:
    logits = model.logits(pixels[np.newaxis])[0].astype(np.float64)
    card, warning = model.card, None if size is None else doubt(model.card, pixels, logits, size)
    if temperature is None:
        temperature = card.softening
    known = image, label, card, model.path, logits, temperature, pixels, original, size, truth, warning
    return Prediction(*known)


def _labelled(paths: Sequence[Path]) -> list[tuple[Path, str]]:
    """Returns each file with a label, numbered where names repeat, so that no drawing replaces another."""
    counts = Counter(path.stem for path in paths)
    labels: list[str] = []
    taken = {stem for stem, count in counts.items() if count == 1}
    for number, path in enumerate(paths, start=1):
        label = path.stem
        while counts[path.stem] > 1 and label in {path.stem} | taken:
            label, number = f"{path.stem}_{number}", number + len(paths)
        taken.add(label)
        labels.append(label)
    return list(zip(paths, labels, strict=True))


def doubt(
    card: ModelCard, pixels: npt.NDArray[np.uint8], logits: npt.NDArray[np.float64], size: tuple[int, int]
) -> str | None:
    """Returns a sentence about why an image is probably nothing that a model can recognise.

    docs/decisions/0045-warning-for-no-digit.md explains the rules; ``scripts/doubt`` measures them.

    An image of less than half the model's size is too small for any model. The other rules are for
    models of digits.

    Args:
        card: the model's card.
        pixels: (C, H, W) uint8, the network's input.
        logits: (classes,) float64, the network's output.
        size: width and height of the image file in pixels.

    Returns:
        None for an image without reason for doubt.
    """
    _, height, width = card.image_shape
    if 2 * max(size) < max(height, width):
        small, usual = f"{size[0]} x {size[1]}", f"{width} x {height}"
        return f"Probably too small: it has only {small} pixels, the model's images have {usual}."
    if not shows_digits(card.dataset, card.image_shape, card.classes):
        return None
    reason = _strange_shape(pixels[0] >= _INK)
    best = float(tempered_softmax(logits, 1.0).max())
    if reason is None and best < _LEAST_PROBABILITY:
        reason = f"the most probable class has only {best:.1%}"
    return None if reason is None else f"Probably no single digit: {reason}."


def _strange_shape(ink: npt.NDArray[np.bool_]) -> str | None:
    """Returns what in the shape of the ink, (H, W), speaks against a single digit."""
    from scipy import ndimage

    parts, _ = ndimage.label(ink, structure=np.ones((3, 3)))
    areas = np.bincount(parts[ink])
    if len(areas) == 0:
        return None
    places = ndimage.find_objects(parts)
    first, *rest = (places[index - 1][1] for index in np.argsort(-areas, kind="stable") if areas[index])
    if rest and np.sort(areas)[-2] >= _SECOND_PART * areas.sum():
        second = rest[0]
        if first.stop <= second.start or second.stop <= first.start:
            return "the ink has two parts side by side"
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if columns[-1] - columns[0] + 1 > _WIDEST * (rows[-1] - rows[0] + 1):
        return "the ink is much wider than high"
    return None
