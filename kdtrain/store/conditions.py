"""The conditions of a run that change what its figures mean: first weights, images without labels, copies."""

from __future__ import annotations

import os.path
from typing import Annotated

import msgspec
from msgspec import Meta
from msgspec.structs import replace

Count = Annotated[int, Meta(ge=0)]

_UNEVEN = 3  # times the smallest class
_FEW_LABELS = 5000  # training images; with so few, labels are rare already


class Transfer(msgspec.Struct, frozen=True):
    """Images without labels, which students with a teacher are also trained on.

    Attributes:
        source: path of the folder or file of --transfer-data; None where they are all training images that
            have lost their labels.
        images: their number.
        share: their share of each batch.
        models: the students that see them.
    """

    source: str | None
    images: Count
    share: Annotated[float, Meta(gt=0, lt=1)]
    models: tuple[str, ...]


class Labels(msgspec.Struct, frozen=True):
    """The labels that --labels leaves.

    Attributes:
        kept: number of training images with a label.
        images: number of training images, with and without.
        held_out: number of those with a label that are held out.
    """

    kept: Count
    images: Count
    held_out: Count


class Copies(msgspec.Struct, frozen=True):
    """Images that are in several parts of the data, pixel by pixel.

    Attributes:
        test_in_training: number of test images that are also training images, with or without a label.
        test_in_held_out: number of test images that are also held-out images.
        held_out_in_training: number of held-out images that are also training images.
        test_images: number of test images.
        held_out_images: number of held-out images.
    """

    test_in_training: Count
    test_in_held_out: Count
    held_out_in_training: Count
    test_images: Count
    held_out_images: Count

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


class ClassSizes(msgspec.Struct, frozen=True):
    """The largest and the smallest class of the training images with labels.

    Attributes:
        largest: name of the largest class.
        most: its number of images.
        smallest: name of the smallest class.
        fewest: its number of images.
        balance: how small classes count as much as large ones, as --balance takes it.
    """

    largest: str
    most: Count
    smallest: str
    fewest: Count
    balance: str

    @property
    def sentence(self) -> str:
        """The sizes, and what can be done or is done about them."""
        done = {
            "none": "--balance sample or --balance loss makes all classes count equally",
            "sample": "each class is drawn equally often",
            "loss": "labels of small classes have more weight",
        }
        return (
            f"The classes are uneven: {self.largest} has {self.most:,} training images, {self.smallest} "
            f"{self.fewest:,}; {done[self.balance]}."
        )


class Conditions(msgspec.Struct, frozen=True):
    """Conditions of the training of the students that change what the figures mean.

    Attributes:
        student_checkpoint: path of the weights that every student begins from; None for drawn ones.
        labels: the labels that are left; None where all training images have one.
        transfer: images without labels; None without any.
        training_images: number of training images with labels; 0 if unknown.
        copies: images that are in several parts of the data; None if no image is.
        classes: sizes of classes; None if unknown.
    """

    student_checkpoint: str | None = None
    labels: Labels | None = None
    transfer: Transfer | None = None
    training_images: Count = 0
    copies: Copies | None = None
    classes: ClassSizes | None = None

    @property
    def uneven(self) -> str | None:
        """The sentence on classes so uneven that accuracy hides the small ones; None if they are not."""
        sizes = self.classes
        return sizes.sentence if sizes is not None and sizes.most > _UNEVEN * sizes.fewest else None

    @property
    def may_take_fewer_labels(self) -> bool:
        """Whether all training images have labels, and are so many that few labels are a task of its own."""
        return self.labels is None and self.transfer is None and self.training_images > _FEW_LABELS

    @property
    def sentences(self) -> list[str]:
        """A sentence for each condition that differs from the usual."""
        first = self.student_checkpoint
        begin = [] if first is None else [f"Every student of every seed begins from the weights in {first}."]
        return [*begin, *self.data_sentences, *([] if self.copies is None else [self.copies.sentence])]

    @property
    def data_sentences(self) -> list[str]:
        """The sentences on labels, and on images without."""
        sentences, labels, transfer = [], self.labels, self.transfer
        if labels is not None:
            held_out = f", and {labels.held_out:,} of these are held out" if labels.held_out else ""
            sentences.append(f"{labels.kept:,} of {labels.images:,} training images have labels{held_out}.")
        if transfer is not None:
            source = f" ({transfer.source})" if transfer.source else ""
            models, share = " and ".join(transfer.models), transfer.share
            sentences += [
                f"The training of {models} also has {transfer.images:,} images without labels{source}, with "
                f"the teacher's outputs alone. They are {100 * share:.3g} % of each batch, so an epoch has "
                f"{1 / (1 - share):.3g} times as many images.",
                "A student without a teacher cannot use these images.",
            ]
        return sentences

    def without_folders(self) -> Conditions:
        """Returns the conditions with names in the place of paths, for a page or a card that others see."""
        first, transfer = self.student_checkpoint, self.transfer
        if transfer is not None and transfer.source is not None:
            transfer = replace(transfer, source=os.path.basename(transfer.source))
        return replace(self, student_checkpoint=first and os.path.basename(first), transfer=transfer)
