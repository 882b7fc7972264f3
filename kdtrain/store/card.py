"""What weights are for: the card that every file of a model carries. It needs no oneflow to be read."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kdtrain
from kdtrain import runtime
from kdtrain.data.arrays import CHANNELS, LARGEST_SIDE
from kdtrain.errors import CheckpointError, without_controls

_MOST_CLASSES = 10_000  # far more than labels can tell apart, few enough to allocate a network for
_MOST_VALUES = 3 * 256 * 256  # in an image: the largest network for it has less than 1 GB of weights
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
    """

    mode: str
    arch: str
    dataset: str
    image_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    metrics: dict[str, float] = field(default_factory=dict)
    versions: dict[str, str] = field(
        default_factory=lambda: {"kdtrain": kdtrain.__version__, "oneflow": str(runtime.flow.__version__)}
    )


def read_card(header: Any, path: Path) -> ModelCard:
    """Returns the card in a header, once all in it is of the right type and of a size that can be.

    Raises:
        CheckpointError: something in it is missing, or cannot be.
    """
    header = header if isinstance(header, dict) else {}
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
    card = ModelCard(**values)
    if not (
        len(card.image_shape) == 3
        and card.image_shape[0] in CHANNELS
        and all(1 <= length <= LARGEST_SIDE for length in card.image_shape[1:])
        and math.prod(card.image_shape) <= _MOST_VALUES
        and len(card.mean) == len(card.std) == card.image_shape[0]
        and all(0 <= mean <= 1 for mean in card.mean)
        and all(0 < std <= 1 for std in card.std)
        and 2 <= len(card.classes) <= _MOST_CLASSES
        and card.arch.isprintable()
    ):
        raise CheckpointError(f"{path} is not a model that kdtrain can use: its header contradicts itself.")
    return card


def _cleaned(value: Any) -> Any:
    """Returns a header's value with nothing in its texts that a terminal would obey: they are printed."""
    if isinstance(value, dict):
        return {without_controls(name): _cleaned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return without_controls(value) if isinstance(value, str) else value
