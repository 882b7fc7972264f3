"""The conditions of a comparison that change what its figures mean: first weights, images without labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_FEW_LABELS = 5000  # training images; with so few, labels are rare already


@dataclass(frozen=True)
class Transfer:
    """Images without labels, which students with a teacher are also trained on.

    Attributes:
        source: path of their folder or file.
        images: their number.
        share: their share of each batch.
        models: the students that see them.
    """

    source: str
    images: int
    share: float
    models: tuple[str, ...]


@dataclass(frozen=True)
class Conditions:
    """Conditions of the training of the students.

    Attributes:
        student_checkpoint: path of the weights that every student begins from; None for drawn ones.
        transfer: images without labels; None without any.
        training_images: number of training images with labels; 0 if unknown.
    """

    student_checkpoint: str | None = None
    transfer: Transfer | None = None
    training_images: int = 0

    @property
    def may_take_fewer_labels(self) -> bool:
        """Whether all training images have labels, and are so many that few labels are a task of its own."""
        return self.transfer is None and self.training_images > _FEW_LABELS


def condition_sentences(conditions: Conditions) -> list[str]:
    """Returns a sentence for each condition that differs from the usual."""
    sentences = []
    if conditions.student_checkpoint is not None:
        sentences.append(
            f"Every student of every seed begins from the weights in {conditions.student_checkpoint}."
        )
    if conditions.transfer is not None:
        sentences += [transfer_sentence(conditions.transfer), "The other students never see these images."]
    return sentences


def transfer_sentence(transfer: Transfer) -> str:
    """Returns a sentence: which students see how many images without labels, and what an epoch costs."""
    models = " and ".join(transfer.models)
    return (
        f"The training of {models} also has {transfer.images:,} images without labels ({transfer.source}), "
        f"under the teacher's answers alone. They are {100 * transfer.share:.3g} % of each batch, so an "
        f"epoch has {1 / (1 - transfer.share):.3g} times as many images."
    )


def conditions_to_json(conditions: Conditions) -> dict[str, Any]:
    """Returns plain values for ``compare.json``."""
    return {**asdict(conditions), "sentences": condition_sentences(conditions)}
