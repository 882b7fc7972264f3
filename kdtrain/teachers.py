"""Finds the teacher for a student: a checkpoint that fits the data and the flags."""

from __future__ import annotations

from pathlib import Path

from kdtrain.config import FitConfig
from kdtrain.console import note
from kdtrain.data.datasets import Dataset
from kdtrain.errors import CheckpointError
from kdtrain.locations import absolute
from kdtrain.store.checkpoint import ModelCard, SavedModel, load_model


def find_teacher(config: FitConfig, dataset: Dataset) -> SavedModel | None:
    """Returns --teacher-checkpoint, or else the best teacher in the model-save directory, or None.

    Raises:
        CheckpointError: it cannot be read, or it does not fit; the text names both sides.
    """
    path = config.teacher_checkpoint or default_model_path(config.models, "teacher")
    if config.teacher_checkpoint is None and not path.exists():
        return None
    teacher = load_model(
        path,
        fallback=model_card("teacher", config.architecture_for("teacher"), dataset),
        arch=config.teacher_arch,
        flag="--teacher-arch",
    )
    _check(teacher, dataset)
    teacher.build("cpu")  # finds out whether the weights are those of this architecture
    if absolute(teacher.card.dataset) != absolute(dataset.name):
        note(f"The teacher in {path} was trained on {teacher.card.dataset}; here it teaches {dataset.name}.")
    return teacher


def networks_to_train(config: FitConfig) -> list[str]:
    """Returns which of ``teacher`` and ``student`` a fit makes anew: a teacher may be there already."""
    if config.mode in ("teacher", "student"):
        return [config.mode]
    known = config.teacher_checkpoint is not None
    if config.mode == "student_kd":
        known |= default_model_path(config.models, "teacher").exists()
    return ["student"] if known else ["teacher", "student"]


def model_card(mode: str, arch: str, dataset: Dataset) -> ModelCard:
    """Returns the card of a network that is trained on ``dataset``."""
    return ModelCard(
        mode=mode,
        arch=absolute(arch),
        dataset=absolute(dataset.name),
        image_shape=dataset.image_shape,
        classes=dataset.classes,
        mean=dataset.normalization.mean,
        std=dataset.normalization.std,
    )


def _check(teacher: SavedModel, dataset: Dataset) -> None:
    card, remedy = teacher.card, "Choose another with --teacher-checkpoint, or train one with --mode teacher."
    if len(card.classes) != dataset.num_classes:
        raise CheckpointError(
            f"the teacher in {teacher.path} knows {len(card.classes)} classes, "
            f"but {dataset.name} has {dataset.num_classes}. {remedy}"
        )
    if card.image_shape != dataset.image_shape:
        raise CheckpointError(
            f"the teacher in {teacher.path} takes images of {_size(card.image_shape)}, "
            f"but those of {dataset.name} are {_size(dataset.image_shape)}. {remedy}"
        )


def _size(shape: tuple[int, int, int]) -> str:
    return "x".join(str(n) for n in shape)


def default_model_path(models: Path, mode: str) -> Path:
    """Returns where the best model of a mode is kept."""
    return models / f"{mode}.safetensors"
