"""What weights are for: the card that every file of a model carries. It needs no oneflow to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtrain._version import __version__
from kdtrain.data.dataset import Dataset
from kdtrain.errors import CheckpointError, escape_controls
from kdtrain.runtime.limits import CHANNELS, LARGEST_SIDE, MOST_CLASSES
from kdtrain.runtime.locations import absolute

_ENTRIES: dict[str, tuple[type, type | tuple[type, ...]]] = {
    "mode": (str, str),
    "arch": (str, str),
    "dataset": (str, str),
    "image_shape": (list, int),
    "classes": (list, str),
    "mean": (list, (int, float)),
    "std": (list, (int, float)),
    "metrics": (dict, (int, float)),
    "versions": (dict, str),
}
"""What a model's header holds: the type of each entry, and the one of what is in it."""
_LATER: dict[str, type] = {"epochs": int, "images": int, "held_out": str}
"""What headers of earlier versions lack."""


@dataclass(frozen=True)
class ModelCard:
    """What weights are for: enough to build the network and to feed it.

    Attributes:
        mode: how it was trained: teacher, student_kd or student.
        arch: what the network is, as ``build_model`` takes it.
        dataset: the name of the data it was trained on.
        image_shape: channels, height, width.
        classes: the classes' names, in the order of the logits.
        mean: per channel, of pixels scaled to 0..1.
        std: per channel, likewise.
        metrics: of the epoch that these weights are from.
        versions: of kdtrain and oneflow.
        epochs: how many the fit was to last; 0 if that is not known.
        images: how many it was trained on; 0 if that is not known.
        held_out: SHA-256 of the images and labels that the metrics were measured on; "" if it is not known.
    """

    mode: str
    arch: str
    dataset: str
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=lambda: _versions())
    epochs: int = 0
    images: int = 0
    held_out: str = ""

    @property
    def data(self) -> tuple[object, ...]:
        """What tells data sets apart whatever their names are, with the statistics of all training images."""
        return self.image_shape, self.classes, self.mean, self.std

    @property
    def accuracy(self) -> float:
        """On the held-out images, 0 to 1; NaN if it is not known."""
        return self.metrics.get("eval/accuracy", math.nan)

    @property
    def accuracy_text(self) -> str:
        """The same as a text."""
        return "unknown" if math.isnan(self.accuracy) else f"{self.accuracy:.2%}"


def model_card(mode: str, arch: str, dataset: Dataset) -> ModelCard:
    """Returns the card of a network that is trained on ``dataset``."""
    return ModelCard(
        mode=mode,
        arch=absolute(arch),
        dataset=absolute(dataset.name),
        image_shape=dataset.image_shape,
        classes=dataset.classes,
        mean=dataset.normalization.mean,
        std=dataset.normalization.std,
    )


def read_card(header: Any, path: Path) -> ModelCard:
    """Returns the card in a header, once all in it is of the right type and of a size that can be.

    Raises:
        CheckpointError: something in it is missing, or cannot be.
    """
    header = header if isinstance(header, dict) else {}
    classes = header.get("classes")
    if isinstance(classes, list) and len(classes) > MOST_CLASSES:
        raise CheckpointError(
            f"{path} is for {len(classes):,} classes; kdtrain takes at most {MOST_CLASSES:,}."
        )
    values: dict[str, Any] = {}
    for name, (kind, inner) in _ENTRIES.items():
        value = header.get(name)
        inside = value.values() if isinstance(value, dict) else value
        if not isinstance(value, kind) or not all(isinstance(item, inner) for item in inside):
            raise CheckpointError(
                f"{path} is not a model that kdtrain can use: its header has no valid {name}."
            )
        value = _cleaned(value)
        values[name] = tuple(value) if isinstance(value, list) else value
    for name, kind in _LATER.items():
        values[name] = header.get(name, kind())
        if type(values[name]) is not kind:
            raise CheckpointError(
                f"{path} is not a model that kdtrain can use: its header has no valid {name}."
            )
    card = ModelCard(**values)
    if not (
        len(card.image_shape) == 3
        and card.image_shape[0] in CHANNELS
        and all(1 <= length <= LARGEST_SIDE for length in card.image_shape[1:])
        and len(card.mean) == len(card.std) == card.image_shape[0]
        and all(0 <= mean <= 1 for mean in card.mean)
        and all(0 < std <= 1 for std in card.std)
        and len(card.classes) >= 2
        and card.arch.isprintable()
        and 0 <= card.epochs < 2**63
        and 0 <= card.images < 2**63
    ):
        raise CheckpointError(f"{path} is not a model that kdtrain can use: its header contradicts itself.")
    return card


def _cleaned(value: Any) -> Any:
    """Returns a header's value with nothing in its texts that a terminal would obey: they are printed."""
    if isinstance(value, dict):
        return {escape_controls(name): _cleaned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return escape_controls(value) if isinstance(value, str) else value


def _versions() -> dict[str, str]:
    from kdtrain.runtime import flow  # here, because reading a card does without oneflow

    return {"kdtrain": __version__, "oneflow": str(flow.__version__)}
