"""A first look at a teacher that kdtrain did not train: whether it recognises the images that it gets."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Dataset, Normalization
from kdtrain.deploy.onnx_network import OnnxClassifier
from kdtrain.engine.teacher_network import InputConversion, InputForm
from kdtrain.errors import CheckpointError
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.loaders import validation_images

logger = logging.getLogger(__name__)

Outputs = npt.NDArray[np.float32]

_IMAGES = 1000
_NEAR_CHANCE = 0.1  # of the way from chance to no error
_USUAL = (
    Normalization((0.0,), (1.0,)),
    Normalization((0.0,), (1 / 255,)),
    Normalization((0.5,), (0.5,)),
    Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),  # torchvision's and timm's
)


@dataclass(frozen=True, eq=False)
class FirstLook:
    """Some images that a teacher is asked about: held-out ones, or training images if none are held out.

    Attributes:
        dataset: the data.
        kind: ``held-out`` or ``training``.
        split: the split of the images.
        numbers: (N,) int64, their positions in the split.
    """

    dataset: Dataset
    kind: str
    split: str
    numbers: npt.NDArray[np.int64]

    @classmethod
    def at(cls, dataset: Dataset, config: FitConfig) -> FirstLook:
        """Returns the images for a command. The test set is not read."""
        split, numbers = validation_images(dataset, config, config.seed)
        if split == "test":
            numbers = np.arange(len(dataset.train))
        chosen = np.unique(np.linspace(0, len(numbers) - 1, min(_IMAGES, len(numbers))).astype(np.int64))
        is_training = split == "test"
        return cls(
            dataset,
            "training" if is_training else "held-out",
            "train" if is_training else split,
            numbers[chosen],
        )

    def outputs(self, classifier: OnnxClassifier, normalization: Normalization) -> Outputs:
        """Returns the outputs of a network for the images, (N, classes) float32.

        Args:
            classifier: the network.
            normalization: mean and standard deviation that it expects.
        """
        inputs = self.dataset.split(self.split).take(self.numbers).normalized(self.dataset.normalization)
        form = InputForm(classifier.form.shape, normalization)
        return classifier.outputs(InputConversion(own_form(self.dataset), form)(np.asarray(inputs)))

    def accuracy(self, outputs: Outputs) -> float:
        """Returns the share of images, 0 to 1, whose largest output is that of their class.

        Args:
            outputs: (N, classes of the data) float32.
        """
        return float((outputs.argmax(axis=1) == self._labels()).mean())

    def check(self, path: Path, outputs: Outputs, remedy: Callable[[], str], *, allowed: bool) -> None:
        """Logs the accuracy of a teacher, and refuses one whose accuracy is near chance.

        Args:
            path: the teacher's file.
            outputs: its outputs for the images, (N, classes of the data) float32.
            remedy: returns a sentence about what to do.
            allowed: --allow-poor-teacher.

        Raises:
            CheckpointError: its accuracy is near chance.
        """
        accuracy = self.accuracy(outputs)
        logger.info(f"{path} recognises {accuracy:.2%} of {len(self.numbers):,} {self.kind} images.")
        if not self._is_poor(accuracy) or allowed:
            return
        raise CheckpointError(
            f"{path} recognises {accuracy:.2%} of the {self.kind} images, which is near chance: it probably "
            f"gets other images than it was trained on. {remedy()} --allow-poor-teacher takes it as it is."
        )

    def better_normalization(self, classifier: OnnxClassifier, classes: tuple[int, ...] | None) -> str:
        """Returns a sentence that names the usual normalisation with which a network recognises most."""
        channels = classifier.form.shape[0]
        candidates = [*_USUAL, self.dataset.normalization]
        fitting = [candidate for candidate in candidates if len(candidate.mean) in (1, channels)]
        accuracies = []
        for candidate in fitting:
            outputs = self.outputs(classifier, for_channels(candidate, channels))
            accuracies.append(self.accuracy(outputs if classes is None else outputs[:, classes]))
        best = int(np.argmax(accuracies))
        if self._is_poor(accuracies[best]):
            return "No usual normalisation helps: check its classes (--teacher-classes) and --teacher-layout."
        mean, std = (_numbers(values) for values in (fitting[best].mean, fitting[best].std))
        return f"With --teacher-mean {mean} --teacher-std {std} it recognises {accuracies[best]:.2%}."

    def _labels(self) -> npt.NDArray[np.int64]:
        labels: npt.NDArray[np.int64] = self.dataset.split(self.split).labels[self.numbers]
        return labels

    def _is_poor(self, accuracy: float) -> bool:
        """Returns whether an accuracy is less than a tenth of the way from chance to no error."""
        chance = np.bincount(self._labels()).max() / len(self.numbers)
        return bool(accuracy < chance + _NEAR_CHANCE * (1.0 - chance))


def own_form(dataset: Dataset) -> InputForm:
    """Returns the form of a data set's images as its students get them."""
    return InputForm(dataset.image_shape, dataset.normalization)


def for_channels(normalization: Normalization, channels: int) -> Normalization:
    """Returns a normalisation with as many numbers as channels; one number stands for all of them."""
    if len(normalization.mean) == channels:
        return normalization
    return Normalization(normalization.mean * channels, normalization.std * channels)


def normalization_text(normalization: Normalization) -> str:
    """Returns mean and standard deviation as a text."""
    return f"mean {_numbers(normalization.mean)}, std {_numbers(normalization.std)}"


def _numbers(values: tuple[float, ...]) -> str:
    """Returns numbers with four digits, as --teacher-mean takes them; one if all are equal."""
    return ",".join(f"{value:.4g}" for value in (values if len(set(values)) > 1 else values[:1]))
