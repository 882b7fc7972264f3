"""The conditions of a comparison that change what its figures mean: first weights, images without labels."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

_FEW_LABELS = 5000  # training images; with so few, labels are rare already


@dataclass(frozen=True)
class Transfer:
    """Images without labels, which students with a teacher are also trained on.

    Attributes:
        source: path of the folder or file of --transfer-data; None where they are all training images that
            have lost their labels.
        images: their number.
        share: their share of each batch.
        models: the students that see them.
    """

    source: str | None
    images: int
    share: float
    models: tuple[str, ...]


@dataclass(frozen=True)
class Labels:
    """The labels that --labels leaves.

    Attributes:
        kept: number of training images with a label.
        images: number of training images, with and without.
        held_out: number of those with a label that are held out.
    """

    kept: int
    images: int
    held_out: int


@dataclass(frozen=True)
class Copies:
    """Images that are in several parts of the data, pixel by pixel.

    Attributes:
        test_in_training: number of test images that are also training images, with or without a label.
        test_in_held_out: number of test images that are also held-out images.
        held_out_in_training: number of held-out images that are also training images.
        test_images: number of test images.
        held_out_images: number of held-out images.
    """

    test_in_training: int
    test_in_held_out: int
    held_out_in_training: int
    test_images: int
    held_out_images: int

    @property
    def sentence(self) -> str:
        """What is a copy, and what that means for the figures."""
        counts = (
            (self.test_in_training, self.test_images, "test images are also training images"),
            (self.test_in_held_out, self.test_images, "test images are also held-out images"),
            (self.held_out_in_training, self.held_out_images, "held-out images are also training images"),
        )
        parts = [f"{copies:,} of the {images:,} {which}" for copies, images, which in counts if copies]
        return f"Copies, equal in each pixel: {', '.join(parts)}. A copy is not a test on a new image."


@dataclass(frozen=True)
class Conditions:
    """Conditions of the training of the students.

    Attributes:
        student_checkpoint: path of the weights that every student begins from; None for drawn ones.
        labels: the labels that are left; None where all training images have one.
        transfer: images without labels; None without any.
        training_images: number of training images with labels; 0 if unknown.
        copies: images that are in several parts of the data; None if no image is.
    """

    student_checkpoint: str | None = None
    labels: Labels | None = None
    transfer: Transfer | None = None
    training_images: int = 0
    copies: Copies | None = None

    @property
    def may_take_fewer_labels(self) -> bool:
        """Whether all training images have labels, and are so many that few labels are a task of its own."""
        return self.labels is None and self.transfer is None and self.training_images > _FEW_LABELS


def condition_sentences(conditions: Conditions) -> list[str]:
    """Returns a sentence for each condition that differs from the usual."""
    sentences = []
    if conditions.student_checkpoint is not None:
        sentences.append(
            f"Every student of every seed begins from the weights in {conditions.student_checkpoint}."
        )
    copies = [] if conditions.copies is None else [conditions.copies.sentence]
    return sentences + data_sentences(conditions) + copies


def data_sentences(conditions: Conditions) -> list[str]:
    """Returns the sentences on labels, and on images without."""
    sentences = []
    if conditions.labels is not None:
        sentences.append(labels_sentence(conditions.labels))
    if conditions.transfer is not None:
        sentences.append(transfer_sentence(conditions.transfer))
        sentences.append("A student without a teacher cannot use these images.")
    return sentences


def labels_sentence(labels: Labels) -> str:
    """Returns a sentence: how many training images have labels, and how many of these are held out."""
    held_out = f", and {labels.held_out:,} of these are held out" if labels.held_out else ""
    return f"{labels.kept:,} of {labels.images:,} training images have labels{held_out}."


def transfer_sentence(transfer: Transfer) -> str:
    """Returns a sentence: which students see how many images without labels, and what an epoch costs."""
    models, source = " and ".join(transfer.models), f" ({transfer.source})" if transfer.source else ""
    return (
        f"The training of {models} also has {transfer.images:,} images without labels{source}, "
        f"with the teacher's outputs alone. They are {100 * transfer.share:.3g} % of each batch, so an "
        f"epoch has {1 / (1 - transfer.share):.3g} times as many images."
    )


def conditions_to_json(conditions: Conditions) -> dict[str, Any]:
    """Returns plain values for ``compare.json``."""
    return {**asdict(conditions), "sentences": condition_sentences(conditions)}
