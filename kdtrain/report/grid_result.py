"""The result of a grid search: combinations of settings, and the figures of each on the held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Settings = Mapping[str, float]
"""Values of some settings, by name."""


@dataclass(frozen=True)
class Candidate:
    """One combination of settings, and a model's figures with it on the held-out images.

    Attributes:
        settings: the combination.
        accuracy: accuracy of the best epoch, fraction 0..1.
        cross_entropy: cross-entropy of the same epoch, nats per image.
        directory: the run directory, relative to the comparison's.
    """

    settings: Settings
    accuracy: float
    cross_entropy: float
    directory: str


@dataclass(frozen=True)
class GridResult:
    """The candidates of one model, and the best of them (see ``kdtrain.experiment.grid.choose``)."""

    candidates: tuple[Candidate, ...]
    best: Candidate


def settings_text(settings: Settings) -> str:
    """Returns ``"temperature=2,alpha=0.5"``."""
    return ",".join(f"{name}={value!r}".removesuffix(".0") for name, value in settings.items())
