"""Finds the teacher for a student: a checkpoint that fits the data and the flags."""

from __future__ import annotations

from pathlib import Path

from kdtrain.data.dataset import Dataset
from kdtrain.errors import CheckpointError, size_text
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.loaders import count_training
from kdtrain.runtime.locations import absolute
from kdtrain.store.card import ModelCard, model_card
from kdtrain.store.checkpoint import SavedModel, load_card, load_model
from kdtrain.store.kept_models import kept_models


def find_teacher(config: FitConfig, dataset: Dataset) -> SavedModel | None:
    """Returns --teacher-checkpoint, or else a teacher of these data in the model-save directory, or None.

    Raises:
        CheckpointError: it cannot be read, or it does not fit; the text names both sides.
    """
    path = config.teacher_checkpoint or _kept_teacher(config, dataset)
    if path is None:
        return None
    teacher = load_model(
        path,
        fallback=model_card("teacher", config.architecture_for("teacher"), dataset),
        arch=config.teacher_arch,
        flag="--teacher-arch",
    )
    _check(teacher, dataset)
    teacher.build("cpu")  # finds out whether the weights are those of this architecture
    return teacher


def describe_teacher(teacher: SavedModel, config: FitConfig, dataset: Dataset) -> str:
    """Returns a sentence that says which teacher it is, and what sets it apart from one trained here.

    It tells of other data, fewer epochs and fewer images. A checkpoint without metrics comes from
    elsewhere, and does not say how it was trained.
    """
    card, said = teacher.card, f"The teacher is {teacher.path}"
    epochs, images = config.epochs_for("teacher"), count_training(dataset, config)
    other_data = not is_of(card, dataset)
    if not other_data and (not card.metrics or (card.epochs >= epochs and card.images >= images)):
        return f"{said}."
    same_name = absolute(card.dataset) == absolute(dataset.name)
    other_images = " (other images)" if other_data and same_name else ""
    return (
        f"{said}: trained on {card.dataset}{other_images}, {_training(card.epochs, card.images)}, "
        f"held-out accuracy {card.accuracy_text}. "
        f"This run would train one on {dataset.name}, {_training(epochs, images)}."
    )


def is_of(card: ModelCard, dataset: Dataset) -> bool:
    """Returns whether a model was trained on this data set."""
    return card.data == model_card(card.mode, card.arch, dataset).data


def networks_to_train(config: FitConfig, dataset: Dataset) -> list[str]:
    """Returns which of ``teacher`` and ``student`` a fit makes anew: a teacher may be there already."""
    if config.mode in ("teacher", "student"):
        return [config.mode]
    known = config.teacher_checkpoint is not None
    if config.mode == "student_kd":
        known = known or _kept_teacher(config, dataset) is not None
    return ["student"] if known else ["teacher", "student"]


def _kept_teacher(config: FitConfig, dataset: Dataset) -> Path | None:
    """Returns the first teacher of these data, and of --teacher-arch if that is given."""
    for path in kept_models(config.models, "teacher"):
        card = load_card(path)
        if is_of(card, dataset) and config.teacher_arch in (None, card.arch):
            return path
    return None


def _training(epochs: int, images: int) -> str:
    if not epochs:
        return "epochs and images not recorded"
    return f"{epochs:,} epoch{'s' * (epochs != 1)}, {images:,} image{'s' * (images != 1)}"


def _check(teacher: SavedModel, dataset: Dataset) -> None:
    card, remedy = teacher.card, "Choose another with --teacher-checkpoint, or train one with --mode teacher."
    if len(card.classes) != dataset.num_classes:
        raise CheckpointError(
            f"the teacher in {teacher.path} knows {len(card.classes)} classes, "
            f"but {dataset.name} has {dataset.num_classes}. {remedy}"
        )
    if card.image_shape != dataset.image_shape:
        raise CheckpointError(
            f"the teacher in {teacher.path} takes images of {size_text(card.image_shape)}, "
            f"but those of {dataset.name} are {size_text(dataset.image_shape)}. {remedy}"
        )
