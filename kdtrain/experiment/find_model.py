"""The search for a trained model of a type in a folder."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from kdtrain.deploy.opening import is_named
from kdtrain.errors import CheckpointError, listed
from kdtrain.runtime.locations import missing_path_text
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_card
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
    """Returns a model's file or directory as it is, and for a folder of models ``model_in`` it."""
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

    Files named after the mode come before others whose card has it. Of several, it is the first that
    fits the other arguments best, and a message names it.

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
