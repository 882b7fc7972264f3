"""The search for a trained model of a type in a folder."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

from kdtrain.deploy.opening import is_named
from kdtrain.errors import CheckpointError
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
    """Returns a model's file, or its directory if ``oneflow.save`` wrote it.

    In a folder of models, it is the model of this mode; of several, the first that fits the other
    arguments best. A message names it then.

    Args:
        path: a model's file or directory, which is returned as it is, or a folder of models.
        mode: teacher, student or student_kd.
        arch: the architecture that is preferred.
        dataset: the data that are preferred.
        data_dir: the folder of the data that are preferred.

    Raises:
        CheckpointError: the folder has no model of this mode.
    """
    if not os.path.isdir(path) or is_oneflow_directory(path):
        return path
    paths = kept_models(path, mode)
    if not paths:
        return _other_kind(path, mode)
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


def _other_kind(folder: Path, mode: str) -> Path:
    """Returns a model of the mode that is no kept checkpoint: a directory of OneFlow's, or an ONNX file."""
    for name in (mode, f"{mode}.onnx"):
        path = folder / name
        if is_oneflow_directory(path) or (path.suffix == ".onnx" and path.is_file()):
            return path
    models = _models_in(folder)
    listed = ", ".join(f"{path.name} ({kind})" if kind else path.name for path, kind in models[:_MOST_LISTED])
    more = f" and {len(models) - _MOST_LISTED} more" if len(models) > _MOST_LISTED else ""
    content = (
        f"The folder has {listed}{more}: choose with --model-type or --checkpoint"
        if models
        else (f"Train one with `kdtrain fit --mode {mode}`, or name a file with --checkpoint")
    )
    raise CheckpointError(f"there is no {mode} model in {missing_path_text(folder)}. {content}.")


def _models_in(folder: Path) -> list[tuple[Path, str]]:
    """Returns the models of a folder in order of name, each with its mode, which is "" if unknown."""
    models = []
    for path in sorted(folder.iterdir()):
        if is_oneflow_directory(path):
            models.append((path, "of oneflow.save"))
        elif path.suffix in (".safetensors", ".onnx"):
            models.append((path, ""))
            if path.suffix == ".safetensors" and len(models) <= _MOST_LISTED:
                with contextlib.suppress(CheckpointError):
                    models[-1] = (path, load_card(path).mode)
    return models
