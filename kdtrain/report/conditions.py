"""The conditions of a comparison that change what its figures mean: where its students begin."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Conditions:
    """Conditions of the training of the students.

    Attributes:
        student_checkpoint: path of the weights that every student begins from; None for drawn ones.
    """

    student_checkpoint: str | None = None


def condition_sentences(conditions: Conditions) -> list[str]:
    """Returns a sentence for each condition that differs from the usual."""
    sentences = []
    if conditions.student_checkpoint is not None:
        sentences.append(
            f"Every student of every seed begins from the weights in {conditions.student_checkpoint}."
        )
    return sentences


def conditions_to_json(conditions: Conditions) -> dict[str, Any]:
    """Returns plain values for ``compare.json``."""
    return {**asdict(conditions), "sentences": condition_sentences(conditions)}
