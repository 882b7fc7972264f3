"""The opening of a trained model and of its data set, for all that uses trained models."""

from __future__ import annotations

import shlex
from pathlib import Path

import numpy as np

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import BUILT_IN, load_dataset
from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.deploy.predict.oneflow_model import OneFlowModel
from kdtrain.deploy.predict.predictor import Logits, Predictor
from kdtrain.errors import CheckpointError, UsageError, size_text
from kdtrain.runtime.console import with_progress_bar
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_model


def open_model(
    path: Path, arch: str | None = None, *, mode: str = "", device: str = "cpu", threads: int = 1
) -> Predictor:
    """Reads a checkpoint or an ONNX file.

    Args:
        path: the file or directory.
        arch: the expected architecture of a checkpoint, as ``open_checkpoint`` takes it.
        mode: teacher, student or student_kd, where that is known.
        device: the device that computes a checkpoint.
        threads: threads of onnxruntime that compute an ONNX file.
    """
    if path.suffix == ".onnx":
        return OnnxModel.load(path, threads)
    return open_checkpoint(path, arch, mode=mode, device=device)


def open_checkpoint(
    path: Path, arch: str | None = None, *, mode: str = "", device: str = "cpu"
) -> OneFlowModel:
    """Reads a checkpoint. A OneFlow directory is taken for one of the sample's, trained on MNIST.

    Args:
        path: the file or directory.
        arch: the expected architecture; without it, no code of the user's runs because a file names it.
        mode: teacher, student or student_kd, where that is known.
        device: ``cpu`` or ``cuda``.
    """
    guess = "teacher_cnn" if mode in ("", "teacher") else "student_mlp"
    digits = tuple(str(digit) for digit in range(10))
    sample = ModelCard(mode or "unknown", guess, "mnist", (1, 28, 28), digits, mean=(0.1307,), std=(0.3081,))
    return OneFlowModel(load_model(path, fallback=sample, arch=arch), device)


def predict_test_set(model: Predictor, data: Dataset) -> Logits:
    """Returns (N, classes) float32 logits of a data set's N test images; shows a progress bar."""
    images = data.test.images
    starts = range(0, len(images), IMAGES_AT_ONCE)
    batches = with_progress_bar(starts, "test set", len(starts), "batch")
    return np.concatenate([model.logits(images[start : start + IMAGES_AT_ONCE]) for start in batches])


def open_data(
    model: Predictor, dataset: str | None, data_dir: Path | None, *, skip_corrupt: bool = False
) -> Dataset:
    """Returns the data set that a flag names, or else the built-in one that the model was trained on.

    A name in a model's file opens nothing else: an untrusted file may name any file, folder or code.
    Images of a folder are resized to the model's input size.

    Raises:
        UsageError: the model was trained on data that are not built in, and no flag names them.
        CheckpointError: the model takes other images or has other classes.
    """
    name = model.card.dataset if dataset is None else dataset
    if dataset is None and name not in BUILT_IN:
        if data_dir is None:
            flag = (
                f"name these data with --dataset {shlex.quote(name)}"
                if ":" in name
                else "name their folder with --data-dir"
            )
            raise UsageError(
                f"{model.path} was trained on {name}: {flag}. A model's file opens only data "
                "that are built in."
            )
        name = "mnist"  # the files in --data-dir decide
    _, height, width = model.card.image_shape
    folder = name.startswith("folder:")
    size = height if folder and height == width else None  # other images have one size already
    data = load_dataset(name, data_dir, image_size=size, skip_corrupt=skip_corrupt)
    check_fits(model, data)
    return data


def is_named(card: ModelCard, dataset: str | None, data_dir: Path | None) -> bool:
    """Returns whether --dataset or --data-dir names the data that a model was trained on.

    Only the last parts of the names are compared: ``folder:/home/me/pets`` and ``folder:pets`` are equal.
    """
    named = str(data_dir.resolve()) if data_dir is not None else dataset or ""
    return _last_part(named) == _last_part(card.dataset)


def _last_part(name: str) -> str:
    """Returns ``pets`` for ``folder:/home/me/pets``."""
    return Path(name.rpartition(":")[2]).name


def check_fits(model: Predictor, data: Dataset) -> None:
    """Raises CheckpointError if a model takes images of another size, or has another number of classes."""
    if data.image_shape != model.card.image_shape or data.num_classes != len(model.card.classes):
        raise CheckpointError(
            f"{model.path} is for {_describe(model.card.image_shape, len(model.card.classes))}; "
            f"{data.name} has {_describe(data.image_shape, data.num_classes)}."
        )


def _describe(shape: tuple[int, int, int], classes: int) -> str:
    return f"images of {size_text(shape)} in {classes} classes"
