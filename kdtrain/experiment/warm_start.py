"""The weights that students begin from, with --student-checkpoint."""

from __future__ import annotations

import logging

from kdtrain.data.dataset import Dataset
from kdtrain.errors import CheckpointError, size_text
from kdtrain.experiment.config import FitConfig
from kdtrain.runtime.ranks import Ranks
from kdtrain.store.card import model_card
from kdtrain.store.checkpoint import SavedModel, fingerprint, load_model

logger = logging.getLogger(__name__)


def first_weights(config: FitConfig, dataset: Dataset, ranks: Ranks | None = None) -> SavedModel | None:
    """Returns the model of --student-checkpoint, whose weights fit the student; None without the setting.

    Args:
        config: configuration of a student.
        dataset: the images of the student.
        ranks: the processes that train together; all must find the same weights.

    Raises:
        CheckpointError: the file cannot be read, or its network is another one: another architecture, other
            shapes of weights or images, or another number of classes.
        KdtrainError: the ranks find different weights.
    """
    if config.student_checkpoint is None:
        return None
    saved = load_model(
        config.student_checkpoint,
        fallback=model_card("student", config.student_arch, dataset),
        arch=config.student_arch,
        flag="--student-arch",
    )
    _check(saved, dataset)
    saved.build("cpu")  # raises if the weights are not those of this architecture
    if ranks is not None:
        ranks.check_same("the weights to begin from", fingerprint(saved.weights, saved.card.arch).encode())
    return saved


def announce_first_weights(config: FitConfig, dataset: Dataset) -> None:
    """Checks --student-checkpoint before any work is done, and logs what the students begin from.

    Raises:
        CheckpointError: as ``first_weights`` does.
    """
    saved = first_weights(config, dataset)
    if saved is None:
        return
    card = saved.card
    logger.info(
        f"Students begin from the weights in {saved.path}: trained on {card.dataset}, held-out accuracy "
        f"{card.accuracy_text}."
    )
    normalization = dataset.normalization
    if (card.mean, card.std) != (normalization.mean, normalization.std):
        logger.info(
            f"These weights were trained on images of mean {_numbers(card.mean)} and deviation "
            f"{_numbers(card.std)}; this fit normalises by those of {dataset.name}, "
            f"{_numbers(normalization.mean)} and {_numbers(normalization.std)}."
        )


def _check(saved: SavedModel, dataset: Dataset) -> None:
    card, remedy = saved.card, "Choose another with --student-checkpoint, or leave it out."
    if len(card.classes) != dataset.num_classes:
        raise CheckpointError(
            f"the student in {saved.path} has {len(card.classes)} classes, but {dataset.name} has "
            f"{dataset.num_classes}. {remedy}"
        )
    if card.image_shape != dataset.image_shape:
        raise CheckpointError(
            f"the student in {saved.path} takes images of {size_text(card.image_shape)}, but those of "
            f"{dataset.name} are {size_text(dataset.image_shape)}. {remedy}"
        )


def _numbers(values: tuple[float, ...]) -> str:
    return " ".join(f"{value:.4f}" for value in values)
