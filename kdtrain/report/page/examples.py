"""The test images in ``report.html``: those on which the two students differ most."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import PIL.Image
from scipy.special import softmax

from kdtrain.data.dataset import Dataset
from kdtrain.errors import escape_controls

SHOWN = 8
_PIXELS = 96
"""Height and width that larger images are reduced to."""

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class MeanPrediction:
    """A model's prediction for an image, over its seeds.

    Attributes:
        model: the model.
        right: number of its networks that recognised the image.
        networks: number of its networks, one for each seed.
        probabilities: its three most probable classes and their mean probabilities, 0..1. The true class
            takes the third place if it is not among them.
    """

    model: str
    right: int
    networks: int
    probabilities: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Example:
    """A test image.

    Attributes:
        index: its position in the test set.
        truth: its class.
        name: its file, relative to the data's folder; "" for an image that was no file.
        image: the image as a data URI.
        predictions: one of each model.
    """

    index: int
    truth: str
    name: str
    image: str
    predictions: tuple[MeanPrediction, ...]


@dataclass(frozen=True)
class Examples:
    """Images that ``winner`` recognised in more seeds than ``loser``; ``shown`` are the first ones."""

    winner: str
    loser: str
    total: int
    shown: tuple[Example, ...]


def choose_examples(logits: Mapping[str, Sequence[Logits]], dataset: Dataset) -> list[Examples]:
    """Returns the images on which the distilled student is better than the plain one, and the reverse.

    The better student is the one that recognises the image in more seeds. Images are sorted by the
    difference in seeds, then by the difference in the true class's mean probability.

    Args:
        logits: by model, (test images, classes) float32 of each seed.
        dataset: the data set with the test images.
    """
    models = {model: _ModelPredictions.of(seeds, dataset.test.labels) for model, seeds in logits.items()}
    examples = []
    for winner, loser in (("student_kd", "student"), ("student", "student_kd")):
        better, worse = models[winner], models[loser]
        ahead = better.right - worse.right
        order = np.lexsort((worse.of_truth - better.of_truth, -ahead))
        total = int((ahead > 0).sum())
        shown = tuple(_example(int(index), models, dataset) for index in order[: min(SHOWN, total)])
        examples.append(Examples(winner, loser, total, shown))
    return examples


@dataclass(frozen=True, eq=False)
class _ModelPredictions:
    """A model's predictions for N test images.

    Attributes:
        networks: number of its networks.
        right: (N,) int64, number of its networks that are right.
        probabilities: (N, classes) float64, means over its networks.
        of_truth: (N,) float64, mean probability of the true class.
    """

    networks: int
    right: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    of_truth: npt.NDArray[np.float64]

    @classmethod
    def of(cls, seeds: Sequence[Logits], labels: npt.NDArray[np.int64]) -> _ModelPredictions:
        right = np.sum([scores.argmax(axis=1) == labels for scores in seeds], axis=0)
        mean = np.zeros(seeds[0].shape)  # summed in place: a copy for each seed could take gigabytes
        for scores in seeds:
            mean += softmax(scores.astype(np.float64), axis=1) / len(seeds)
        return cls(len(seeds), right, mean, mean[np.arange(len(labels)), labels])


def _example(index: int, models: Mapping[str, _ModelPredictions], dataset: Dataset) -> Example:
    truth = int(dataset.test.labels[index])
    predictions = tuple(
        MeanPrediction(
            name,
            int(model.right[index]),
            model.networks,
            _top(model.probabilities[index], truth, dataset.classes),
        )
        for name, model in models.items()
    )
    name = escape_controls(dataset.test.names[index]) if dataset.test.names else ""
    return Example(index, dataset.classes[truth], name, data_uri(dataset.test.images[index]), predictions)


def _top(
    probabilities: npt.NDArray[np.float64], truth: int, classes: Sequence[str]
) -> tuple[tuple[str, float], ...]:
    first = np.argsort(-probabilities, kind="stable")[:3].tolist()
    if truth not in first:
        first[-1] = truth
    return tuple((classes[number], float(probabilities[number])) for number in first)


def data_uri(image: npt.NDArray[np.uint8]) -> str:
    """Returns a (C, H, W) uint8 image as a PNG in a ``data:`` URI, reduced to 96 pixels a side if larger."""
    pixels = image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, 2)
    thumbnail = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    thumbnail.thumbnail((_PIXELS, _PIXELS))
    buffer = io.BytesIO()
    thumbnail.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
