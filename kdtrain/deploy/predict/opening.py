"""The search for a trained model, its opening, and that of its data set."""

from __future__ import annotations

import contextlib
import logging
import os
import shlex
from pathlib import Path

from kdtrain.data.dataset import Dataset
from kdtrain.data.datasets import BUILT_IN, load_dataset, of_image_files
from kdtrain.deploy.onnx.process import OnnxModel
from kdtrain.deploy.predict.predictor import OneFlowModel, Predictor
from kdtrain.errors import CheckpointError, UsageError, listed, size_text
from kdtrain.runtime.locations import missing_path_text
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_card, load_model
from kdtrain.store.kept_models import kept_models
from kdtrain.store.oneflow_directory import is_oneflow_directory

logger = logging.getLogger(__name__)

_MOST_LISTED = 8


def find_model(
    path: Path,
    mode: str,
    *,
    arch: str | None = None,
    dataset: str | None = None,
    data_dir: Path | None = None,
) -> Path:
    """Returns a model's path as it is; for a folder of models, returns the result of ``model_in``."""
    if not os.path.isdir(path) or is_oneflow_directory(path):
        return path
    return model_in(path, mode, arch=arch, dataset=dataset, data_dir=data_dir)


def model_in(
    folder: Path,
    mode: str,
    *,
    arch: str | None = None,
    dataset: str | None = None,
    data_dir: Path | None = None,
) -> Path:
    """Returns the model of a mode in a folder: a file, or a directory that ``oneflow.save`` wrote.

    Prefers files named after the mode, then those whose card names it. Takes the first that matches most of
    the other arguments, and logs which.

    Args:
        folder: the folder.
        mode: teacher, student or student_kd.
        arch: the architecture that is preferred.
        dataset: the data that are preferred.
        data_dir: the folder of the data that are preferred.

    Raises:
        CheckpointError: the folder has no model of this mode.
    """
    paths = kept_models(folder, mode) or _of_oneflow_or_onnx(folder, mode) or _by_card(folder, mode)
    if len(paths) == 1:
        return paths[0]
    cards: dict[Path, ModelCard] = {path: load_card(path) for path in paths}

    def misfit(path: Path) -> tuple[bool, bool]:
        card = cards[path]
        return not is_named(card, dataset, data_dir), arch not in (None, card.arch)

    chosen = min(paths, key=misfit)
    others = ", ".join(path.name for path in paths if path != chosen)
    logger.info(
        f"The model is {chosen} ({cards[chosen].dataset}, {cards[chosen].arch}). There are others: {others}. "
        "Choose with --dataset, --arch or --checkpoint."
    )
    return chosen


def _of_oneflow_or_onnx(folder: Path, mode: str) -> list[Path]:
    """Returns the directory of OneFlow's, or else the ONNX file, that is named after a mode."""
    directory, file = folder / mode, folder / f"{mode}.onnx"
    if is_oneflow_directory(directory):
        return [directory]
    return [file] if file.is_file() else []


def _by_card(folder: Path, mode: str) -> list[Path]:
    """Returns the checkpoints whose card has a mode.

    Raises:
        CheckpointError: there is none; the text lists what the folder has.
    """
    modes = _modes_in(folder)
    paths = [path for path, kind in modes.items() if kind == mode]
    if paths:
        return paths
    texts = [f"{path.name} ({kind})" if kind else path.name for path, kind in modes.items()]
    choice = f"The folder has {listed(texts, _MOST_LISTED)}: choose with --model-type or --checkpoint"
    remedy = f"Train one with `kdtrain fit --mode {mode}`, or name a file with --checkpoint"
    raise CheckpointError(
        f"there is no {mode} model in {missing_path_text(folder)}. {choice if texts else remedy}."
    )


def _modes_in(folder: Path) -> dict[Path, str]:
    """Returns the mode of each model in a folder, in order of name; "" where it is unknown."""
    modes = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if path.suffix == ".onnx" or is_oneflow_directory(path):
            modes[path] = ""
        elif path.suffix == ".safetensors":
            modes[path] = ""
            with contextlib.suppress(CheckpointError):
                modes[path] = load_card(path).mode
    return modes


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
    size = height if of_image_files(name) and height == width else None  # other images have one size already
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
