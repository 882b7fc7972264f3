"""The result of a grid search: the combinations of settings, and how each did on the held-out images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

Settings = Mapping[str, float]
"""A value for each of some settings."""


@dataclass(frozen=True)
class Candidate:
    """One combination of settings, and how a model did with it on the held-out images.

    Attributes:
        settings: the combination.
        accuracy: of the best epoch, fraction 0..1.
        cross_entropy: of the same epoch, nats per image.
        directory: the run directory, within the comparison's.
    """

    settings: Settings
    accuracy: float
    cross_entropy: float
    directory: str


@dataclass(frozen=True)
class Choice:
    """What one model was tried with, and what was chosen: see ``choose``."""

    candidates: tuple[Candidate, ...]
    chosen: Candidate


def settings_text(settings: Settings) -> str:
    """Returns ``"temperature=2,alpha=0.5"``."""
    return ",".join(f"{name}={value!r}".removesuffix(".0") for name, value in settings.items())
