"""The card in each model file: network, data, and figures. Reading it does not import OneFlow."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtrain._version import __version__
from kdtrain.data.dataset import Dataset
from kdtrain.errors import CheckpointError, escape_controls
from kdtrain.metrics.names import ACCURACY
from kdtrain.runtime.limits import CHANNELS, LARGEST_SIDE, MOST_CLASSES
from kdtrain.runtime.locations import absolute_name
from kdtrain.runtime.value_checks import DEFAULT_TEMPERATURE, MOST_NUMBER

_ENTRIES: dict[str, tuple[type, type | tuple[type, ...]]] = {
    "mode": (str, ()),
    "arch": (str, ()),
    "dataset": (str, ()),
    "image_shape": (list, int),
    "classes": (list, str),
    "mean": (list, (int, float)),
    "std": (list, (int, float)),
    "metrics": (dict, (int, float)),
    "versions": (dict, str),
    "epochs": (int, ()),
    "images": (int, ()),
    "held_out": (str, ()),
    "temperature": (float, ()),
}
"""The entries of a model's header: the type of each entry, and of its items."""


@dataclass(frozen=True)
class ModelCard:
    """The card of a model: all that is needed to build its network and to prepare images for it.

    Attributes:
        mode: the mode of training: teacher, student_kd or student.
        arch: the architecture, as ``build_model`` takes it.
        dataset: the name of the training data.
        image_shape: channels, height, width.
        classes: the names of the classes, in the order of the logits.
        mean: per channel, of pixels scaled to 0..1.
        std: per channel, of pixels scaled to 0..1.
        metrics: the figures of the epoch whose weights these are.
        versions: the versions of kdtrain and oneflow.
        epochs: the number of epochs of the fit; 0 if unknown.
        images: the number of training images; 0 if unknown.
        held_out: SHA-256 (hex) of the images and labels of the metrics; "" if unknown.
        temperature: the temperature of the distillation; 0 if there was none, or if it is unknown.
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
    temperature: float = 0.0

    @property
    def softening(self) -> float:
        """The temperature of softened probabilities: that of the distillation, unless it is 1, or 4."""
        return self.temperature if self.temperature not in (0.0, 1.0) else DEFAULT_TEMPERATURE

    @property
    def data(self) -> tuple[object, ...]:
        """Equal for models of the same data, whatever its name: shape, classes, and training statistics."""
        return self.image_shape, self.classes, self.mean, self.std

    @property
    def accuracy(self) -> float:
        """The accuracy on the held-out images, 0 to 1; NaN if unknown."""
        return self.metrics.get(ACCURACY, math.nan)

    @property
    def accuracy_text(self) -> str:
        """The accuracy as a text, in percent, or "unknown"."""
        return "unknown" if math.isnan(self.accuracy) else f"{self.accuracy:.2%}"


def model_card(mode: str, arch: str, dataset: Dataset) -> ModelCard:
    """Returns the card of a network that is trained on ``dataset``.

    Args:
        mode: teacher, student_kd or student.
        arch: the network's architecture, as ``build_model`` takes it.
        dataset: the data set.
    """
    return ModelCard(
        mode=mode,
        arch=absolute_name(arch),
        dataset=absolute_name(dataset.name),
        image_shape=dataset.image_shape,
        classes=dataset.classes,
        mean=dataset.normalization.mean,
        std=dataset.normalization.std,
    )


def read_card(header: Any, path: Path) -> ModelCard:
    """Returns the card in a header, after a check of all types, lengths and ranges.

    Args:
        header: the parsed JSON.
        path: the file, for messages.

    Raises:
        CheckpointError: an entry is missing, of another type, or out of range.
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
        items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if type(value) is not kind or not all(isinstance(item, inner) for item in items):
            raise CheckpointError(
                f"{path} is not a model that kdtrain can use: its header has no valid {name}."
            )
        value = _cleaned(value)
        values[name] = tuple(value) if isinstance(value, list) else value
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
        and 0 <= card.temperature <= MOST_NUMBER
    ):
        raise CheckpointError(f"{path} is not a model that kdtrain can use: its header contradicts itself.")
    return card


def _cleaned(value: Any) -> Any:
    """Returns a header's value with the control characters in its texts escaped, for printing."""
    if isinstance(value, dict):
        return {escape_controls(name): _cleaned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return escape_controls(value) if isinstance(value, str) else value


def _versions() -> dict[str, str]:
    from kdtrain.runtime import flow  # here: reading a card must not import OneFlow

    return {"kdtrain": __version__, "oneflow": str(flow.__version__)}
