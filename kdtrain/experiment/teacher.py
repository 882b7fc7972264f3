"""The teacher for a student: a checkpoint that fits the data and the flags."""

from __future__ import annotations

from pathlib import Path

from kdtrain.data.dataset import Dataset
from kdtrain.errors import CheckpointError, size_text
from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.loaders import count_training
from kdtrain.experiment.settings import DEFAULT_TEACHER
from kdtrain.runtime.locations import absolute_name
from kdtrain.runtime.ranks import Ranks
from kdtrain.store.card import ModelCard, model_card
from kdtrain.store.checkpoint import SavedModel, fingerprint, load_card, load_model
from kdtrain.store.kept_models import kept_models


def find_teacher(config: FitConfig, dataset: Dataset, ranks: Ranks | None = None) -> SavedModel | None:
    """Returns --teacher-checkpoint, else a teacher of these data in the model-save directory, else None.

    Args:
        config: configuration of the command.
        dataset: the images of the student.
        ranks: the processes that train together; all must find the same teacher.

    Raises:
        CheckpointError: the checkpoint cannot be read, or does not fit data or flags.
        KdtrainError: the ranks find different teachers.
    """
    path = config.teacher_checkpoint or _kept_teacher(config, dataset)
    teacher = None
    if path is not None:
        teacher = load_model(
            path,
            fallback=model_card("teacher", config.teacher_arch or DEFAULT_TEACHER, dataset),
            arch=config.teacher_arch,
            flag="--teacher-arch",
        )
        _check(teacher, dataset)
        teacher.build("cpu")  # raises if the weights are not those of this architecture
    if ranks is not None:
        weights = fingerprint(teacher.weights, teacher.card.arch) if teacher is not None else ""
        ranks.check_same("the teachers", weights.encode())
    return teacher


def describe_teacher(teacher: SavedModel, config: FitConfig, dataset: Dataset) -> str:
    """Returns a sentence that names the teacher and how its training differs from one in this run.

    Differences are other data, fewer epochs and fewer images. A checkpoint without metrics comes from
    elsewhere, and its training is not recorded.
    """
    card, sentence = teacher.card, f"The teacher is {teacher.path}"
    epochs, images = config.epochs_for("teacher"), count_training(dataset, config)
    other_data = not is_of(card, dataset)
    if not other_data and (not card.metrics or (card.epochs >= epochs and card.images >= images)):
        return f"{sentence}."
    same_name = absolute_name(card.dataset) == absolute_name(dataset.name)
    other_images = " (other images)" if other_data and same_name else ""
    return (
        f"{sentence}: trained on {card.dataset}{other_images}, {_training(card.epochs, card.images)}, "
        f"held-out accuracy {card.accuracy_text}. "
        f"This run would train one on {dataset.name}, {_training(epochs, images)}."
    )


def is_of(card: ModelCard, dataset: Dataset) -> bool:
    """Returns whether a model was trained on this data set."""
    return card.data == model_card(card.mode, card.arch, dataset).data


def networks_to_train(config: FitConfig, dataset: Dataset) -> list[str]:
    """Returns the networks that a command trains: ``teacher``, unless one exists already, and ``student``."""
    if config.mode in ("teacher", "student"):
        return [config.mode]
    exists = config.teacher_checkpoint is not None
    if config.mode == "student_kd":
        exists = exists or _kept_teacher(config, dataset) is not None
    return ["student"] if exists else ["teacher", "student"]


def _kept_teacher(config: FitConfig, dataset: Dataset) -> Path | None:
    """Returns the first kept teacher of these data, and of --teacher-arch if that is given."""
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
            f"the teacher in {teacher.path} has {len(card.classes)} classes, "
            f"but {dataset.name} has {dataset.num_classes}. {remedy}"
        )
    if card.image_shape != dataset.image_shape:
        raise CheckpointError(
            f"the teacher in {teacher.path} takes images of {size_text(card.image_shape)}, "
            f"but those of {dataset.name} are {size_text(dataset.image_shape)}. {remedy}"
        )
