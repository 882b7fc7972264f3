"""What ``eval`` and ``infer`` share: the model, and the data that go with it."""

from __future__ import annotations

from pathlib import Path

from kdtrain.data.datasets import DATASETS, Dataset, load_dataset
from kdtrain.errors import CheckpointError, UsageError
from kdtrain.store.checkpoint import ModelCard, SavedModel, load_model


def open_model(path: Path, mode: str = "", arch: str | None = None) -> SavedModel:
    """Reads a checkpoint; a OneFlow directory is taken for one of the sample's, trained on MNIST.

    Args:
        path: the file or directory.
        mode: teacher, student or student_kd, where that is known.
        arch: what the network must be; without it, no file gets code of the user's run.
    """
    guess = "teacher_cnn" if mode in ("", "teacher") else "student_mlp"
    digits = tuple(str(digit) for digit in range(10))
    sample = ModelCard(mode or "unknown", guess, "mnist", (1, 28, 28), digits, mean=(0.1307,), std=(0.3081,))
    return load_model(path, fallback=sample, arch=arch)


def open_data(saved: SavedModel, dataset: str | None, data_dir: Path | None) -> Dataset:
    """Returns the data set that a flag names, or else the one that the model was trained on.

    Raises:
        UsageError: the model was trained on data that are not known by name.
        CheckpointError: the model is for other images or other classes.
    """
    name = dataset or saved.card.dataset
    if data_dir is None and name not in DATASETS and dataset is None:
        raise UsageError(f"{saved.path} was trained on {name}: say where that is with --data-dir.")
    data = load_dataset(name if name in DATASETS or dataset else "mnist", data_dir)
    if data.image_shape != saved.card.image_shape or data.num_classes != len(saved.card.classes):
        raise CheckpointError(
            f"{saved.path} is for {_describe(saved.card.image_shape, len(saved.card.classes))}; "
            f"{data.name} has {_describe(data.image_shape, data.num_classes)}."
        )
    return data


def _describe(shape: tuple[int, int, int], classes: int) -> str:
    return f"images of {'x'.join(str(n) for n in shape)} in {classes} classes"
