"""A first look at teachers: whether each, and the mean of several, recognises the images that it gets."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from kdtrain.data.dataset import Dataset, Normalization
from kdtrain.data.images.originals import Reread, originals, own_form
from kdtrain.data.images.resize import InputConversion, InputForm
from kdtrain.data.loader import Loader
from kdtrain.engine.predict import predict_logits
from kdtrain.engine.teacher_network import Logits
from kdtrain.errors import CheckpointError, size_text
from kdtrain.runtime import flow
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.processes import Job, available_cores, run_jobs
from kdtrain.runtime.ranks import rank

if TYPE_CHECKING:
    from kdtrain.deploy.onnx.network import OnnxClassifier

logger = logging.getLogger(__name__)

Outputs = npt.NDArray[np.float32]

_IMAGES = 1000
_NEAR_CHANCE = 0.1  # of the way from chance to no error
_ORDERED = 0.3  # of this way: an untrained network stays below it in the best order of its classes
_MOST_BELOW_BEST = 0.05  # that the mean of several may recognise less than the best of them
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
        in_child: whether kdtrain's networks are computed in a child process, as the jobs of a session are.
    """

    dataset: Dataset
    kind: str
    split: str
    numbers: npt.NDArray[np.int64]
    in_child: bool

    @classmethod
    def at(
        cls, dataset: Dataset, split: str, numbers: npt.NDArray[np.int64], device: str = "cpu"
    ) -> FirstLook:
        """Returns the images for a command. The test set is not read.

        Args:
            dataset: the data.
            split: the split of the images that choose the best epoch.
            numbers: (M,) int64, their positions in the split.
            device: value of ``--device``.
        """
        if split == "test":
            numbers = np.arange(len(dataset.train))
        chosen = np.unique(np.linspace(0, len(numbers) - 1, min(_IMAGES, len(numbers))).astype(np.int64))
        is_training = split == "test"
        return cls(
            dataset,
            "training" if is_training else "held-out",
            "train" if is_training else split,
            numbers[chosen],
            rank() is None and resolve_device(device) == "cpu",
        )

    def logits(self, network: flow.nn.Module) -> Logits:
        """Returns the logits of one of kdtrain's networks for the images, (N, classes) float32.

        Args:
            network: takes the images as students get them, on the CPU.
        """
        inputs = self.dataset.split(self.split).normalized(self.dataset.normalization, self.numbers)
        split, classes = self.dataset.split(self.split), self.dataset.num_classes
        files = originals(self.dataset, split, self.numbers)
        images = Loader(inputs, self._labels(), len(inputs), num_classes=classes, originals=files)
        work = partial(predict_logits, network, images)
        if not self.in_child:
            return work()
        [logits] = run_jobs([Job("the first look at a teacher", work, len(available_cores()))])
        return logits

    def outputs(self, classifier: OnnxClassifier, normalization: Normalization) -> Outputs:
        """Returns the outputs of a network for the images, (N, classes) float32.

        Args:
            classifier: the network.
            normalization: mean and standard deviation that it expects.
        """
        split = self.dataset.split(self.split)
        inputs = split.normalized(self.dataset.normalization, self.numbers)
        form = InputForm(classifier.form.shape, normalization)
        files, own = originals(self.dataset, split, self.numbers), own_form(self.dataset)
        if files is not None and form.shape[1:] != own.shape[1:]:
            return classifier.outputs(Reread(inputs, files.files, own, form))
        return classifier.outputs(InputConversion(own, form)(np.asarray(inputs)))

    def announce_size(self, shape: tuple[int, int, int]) -> None:
        """Logs what happens to the images of a teacher that takes another size.

        Args:
            shape: channels, height, width of the images that the teacher takes.
        """
        own = self.dataset.image_shape
        if shape[1:] == own[1:]:
            return
        sizes = f"The teacher takes {size_text(shape[1:])}, the data have {size_text(own[1:])}"
        if self.dataset.train.files:
            logger.info(f"{sizes}: it gets the pictures of the files at its own size.")
        else:
            change = "enlarged" if shape[1:] > own[1:] else "scaled down"
            logger.info(f"{sizes}: each image is {change} for it.")

    def accuracy(self, outputs: Outputs) -> float:
        """Returns the share of images, 0 to 1, whose largest output is that of their class.

        Args:
            outputs: (N, classes of the data) float32.
        """
        return float((outputs.argmax(axis=1) == self._labels()).mean())

    def check(self, path: Path, outputs: Outputs, remedy: Callable[[], str | None], *, allowed: bool) -> None:
        """Logs the accuracy of a teacher, and refuses one whose accuracy is near chance.

        Args:
            path: the teacher's file.
            outputs: its outputs for the images, (N, classes of the data) float32.
            remedy: returns a sentence about what to do; None if the teacher is as good as it can be.
            allowed: whether it is taken all the same, as with --allow-poor-teacher.

        Raises:
            CheckpointError: its accuracy is near chance.
        """
        accuracy = self.accuracy(outputs)
        is_poor = self._is_poor(accuracy)
        near_chance = ", which is near chance" if is_poor else ""
        logger.info(f"{path} {self._recognises(accuracy)}{near_chance}.")
        sentence = remedy() if is_poor and not allowed else None
        if sentence is None:
            return
        raise CheckpointError(
            f"{path} recognises {accuracy:.2%} of the {self.kind} images, which is near chance: it probably "
            f"gets other images than it was trained on. {sentence} --allow-poor-teacher takes it as it is."
        )

    def check_mean(self, files: Sequence[tuple[Path, Logits]], mean: Logits, *, allowed: bool) -> None:
        """Logs the accuracy of the mean of several teachers, and refuses one far below the best of them.

        Args:
            files: each one's file and its logits for the images, (N, classes of the data) float32.
            mean: the logarithms of the mean of their probabilities, (N, classes of the data) float32.
            allowed: --allow-poor-teacher.

        Raises:
            CheckpointError: the mean recognises over 5 points less than the best teacher.
        """
        accuracy = self.accuracy(mean)
        logger.info(f"The mean of their probabilities {self._recognises(accuracy)}.")
        highest, best = max((self.accuracy(logits), path) for path, logits in files)
        if highest - accuracy > _MOST_BELOW_BEST and not allowed:
            raise CheckpointError(
                f"The mean of the teachers' probabilities recognises {accuracy:.2%} of the {self.kind} "
                f"images, and {best} alone {highest:.2%}: check images and classes of the others, give them "
                "less --teacher-weight, or leave them out. --allow-poor-teacher takes the mean as it is."
            )

    def better_input(
        self, classifier: OnnxClassifier, given: Normalization, classes: tuple[int, ...] | None
    ) -> str:
        """Returns a sentence with the usual normalisation or the order of classes that helps a network most.

        Args:
            classifier: the network.
            given: the normalisation with which its accuracy is near chance.
            classes: its class for each class of the data; None if they are the same.
        """
        channels = classifier.form.shape[0]
        candidates = [given, *_USUAL, self.dataset.normalization]
        fitting = [candidate for candidate in candidates if len(candidate.mean) in (1, channels)]
        outputs = [self.outputs(classifier, for_channels(candidate, channels)) for candidate in fitting]
        flags = [""] + [
            f"--teacher-mean {_numbers(candidate.mean)} --teacher-std {_numbers(candidate.std)}"
            for candidate in fitting[1:]
        ]
        accuracies = [self.accuracy(each if classes is None else each[:, classes]) for each in outputs]
        best = int(np.argmax(accuracies))
        orders = [self._best_order(each) for each in outputs]
        ordered = max(range(len(orders)), key=lambda index: orders[index][1])
        if orders[ordered][1] > accuracies[best] + _MOST_BELOW_BEST:
            hint = self.better_order(outputs[ordered], flags=flags[ordered])
            if hint is not None:
                return hint
        if self._is_poor(accuracies[best]):
            return "No usual normalisation helps: check its classes (--teacher-classes) and --teacher-layout."
        return f"With {flags[best]} it recognises {accuracies[best]:.2%}."

    def better_order(
        self, outputs: Outputs, names: Sequence[str] | None = None, flags: str = ""
    ) -> str | None:
        """Returns a sentence that names the order of a teacher's classes in which it recognises most.

        None is returned if it does not recognise much in any order.

        Args:
            outputs: the teacher's outputs for the images, (N, its classes) float32.
            names: the names of its classes; None if its file has none.
            flags: further flags that the sentence names.
        """
        order, accuracy = self._best_order(outputs)
        if self._is_poor(accuracy, _ORDERED):
            return None
        # A number that is the name of a class means this class.
        are_names = names is not None and any(name.isdecimal() for name in names)
        classes = ",".join(names[index] if names and are_names else str(index) for index in order)
        words = f"{flags} --teacher-classes {classes}".lstrip()
        return f"Its classes seem to be in another order: {words} gives {accuracy:.2%}."

    def _best_order(self, outputs: Outputs) -> tuple[tuple[int, ...], float]:
        """Returns the teacher's class for each class of the data, and its accuracy in this order.

        The order maximises the sum of the confusion matrix at the pairs of classes.
        """
        from scipy.optimize import linear_sum_assignment  # 0.1 s that other teachers do not need

        confusion = np.zeros((self.dataset.num_classes, outputs.shape[1]), np.int64)
        np.add.at(confusion, (self._labels(), outputs.argmax(axis=1)), 1)
        _, order = linear_sum_assignment(confusion, maximize=True)
        return tuple(map(int, order)), self.accuracy(outputs[:, order])

    def _labels(self) -> npt.NDArray[np.int64]:
        labels: npt.NDArray[np.int64] = self.dataset.split(self.split).labels[self.numbers]
        return labels

    def _is_poor(self, accuracy: float, share: float = _NEAR_CHANCE) -> bool:
        """Returns whether an accuracy is less than this share of the way from chance to no error."""
        chance = np.bincount(self._labels()).max() / len(self.numbers)
        return bool(accuracy < chance + share * (1.0 - chance))

    def _recognises(self, accuracy: float) -> str:
        return f"recognises {accuracy:.2%} of {len(self.numbers):,} {self.kind} images"


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
