"""The test images that ``report.html`` shows: those on which the two students part most."""

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

SHOWN = 8
_PIXELS = 96
"""Side that larger images are reduced to."""

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Opinion:
    """What a model made of an image, over its seeds.

    Attributes:
        model: which.
        right: how many of its networks recognised the image.
        networks: how many there are.
        probabilities: its three most probable classes, with their mean probabilities; the true class is
            always among them.
    """

    model: str
    right: int
    networks: int
    probabilities: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Example:
    """A test image: its position in the test set, its class, itself as a data URI, and the opinions."""

    index: int
    truth: str
    picture: str
    opinions: tuple[Opinion, ...]


@dataclass(frozen=True)
class Examples:
    """Images that ``winner`` recognised in more seeds than ``loser``: the first few of ``total``."""

    winner: str
    loser: str
    total: int
    shown: tuple[Example, ...]


def choose_examples(logits: Mapping[str, Sequence[Logits]], dataset: Dataset) -> list[Examples]:
    """Returns the images on which the distilled student does better than the plain one, and the reverse.

    An image counts for the student that recognises it in more of the seeds. Those with the largest
    difference in seeds come first, then those with the largest in the true class's mean probability.

    Args:
        logits: by model, (test images, classes) of each seed.
        dataset: with the test images.
    """
    views = [_View.of(model, seeds, dataset.test.labels) for model, seeds in logits.items()]
    kd, plain = (next(view for view in views if view.model == model) for model in ("student_kd", "student"))
    found = []
    for winner, loser in ((kd, plain), (plain, kd)):
        ahead = winner.right - loser.right
        order = np.lexsort((loser.of_truth - winner.of_truth, -ahead))
        total = int((ahead > 0).sum())
        shown = tuple(_example(int(index), views, dataset) for index in order[: min(SHOWN, total)])
        found.append(Examples(winner.model, loser.model, total, shown))
    return found


@dataclass(frozen=True, eq=False)
class _View:
    """A model's predictions: (images) seeds that are right, (images, classes) and (images) probabilities."""

    model: str
    networks: int
    right: npt.NDArray[np.int64]
    probabilities: npt.NDArray[np.float64]
    of_truth: npt.NDArray[np.float64]

    @classmethod
    def of(cls, model: str, seeds: Sequence[Logits], labels: npt.NDArray[np.int64]) -> _View:
        right = np.sum([scores.argmax(axis=1) == labels for scores in seeds], axis=0)
        mean = np.zeros(seeds[0].shape)  # added up one by one: of many classes and images, each is large
        for scores in seeds:
            mean += softmax(scores.astype(np.float64), axis=1) / len(seeds)
        return cls(model, len(seeds), right, mean, mean[np.arange(len(labels)), labels])


def _example(index: int, views: Sequence[_View], dataset: Dataset) -> Example:
    truth = int(dataset.test.labels[index])
    opinions = tuple(
        Opinion(
            view.model,
            int(view.right[index]),
            view.networks,
            _top(view.probabilities[index], truth, dataset.classes),
        )
        for view in views
    )
    return Example(index, dataset.classes[truth], data_uri(dataset.test.images[index]), opinions)


def _top(
    probabilities: npt.NDArray[np.float64], truth: int, classes: Sequence[str]
) -> tuple[tuple[str, float], ...]:
    first = np.argsort(-probabilities, kind="stable")[:3].tolist()
    if truth not in first:
        first[-1] = truth
    return tuple((classes[number], float(probabilities[number])) for number in first)


def data_uri(image: npt.NDArray[np.uint8]) -> str:
    """Returns an image (C, H, W) as a PNG in a ``data:`` URI, reduced if it is large."""
    pixels = image[0] if image.shape[0] == 1 else np.moveaxis(image, 0, 2)
    picture = PIL.Image.fromarray(np.ascontiguousarray(pixels))
    picture.thumbnail((_PIXELS, _PIXELS))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
