"""The figures of one model file on a test set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from kdtrain.data.dataset import Dataset
from kdtrain.deploy.predict.opening import open_data, open_model
from kdtrain.deploy.predict.predictor import Logits, Predictor
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.runtime.bars import progress_bar
from kdtrain.runtime.limits import IMAGES_AT_ONCE
from kdtrain.runtime.locations import short_name
from kdtrain.runtime.oneflow import resolve_device
from kdtrain.runtime.processes import available_cores


@dataclass(frozen=True, eq=False, repr=False)
class EvaluatedModel:
    """A model with its figures on a test set.

    Attributes:
        model: the model.
        dataset: the data whose test images it was tested on.
        test: its figures.
    """

    model: Predictor
    dataset: Dataset
    test: Evaluation

    def __repr__(self) -> str:
        arch = short_name(self.model.card.arch)
        return f"<EvaluatedModel {arch} on {self.dataset.name}: {self.test} ({self.model.path})>"


def evaluate(
    checkpoint: Path | str,
    *,
    arch: str | None = None,
    dataset: str | None = None,
    data_dir: Path | str | None = None,
    skip_corrupt: bool = False,
    device: str = "auto",
) -> EvaluatedModel:
    """Tests a model on a test set, as ``kdtrain eval`` does.

    Args:
        checkpoint: a .safetensors file, a OneFlow checkpoint directory, or an .onnx file from ``export``.
        arch: the architecture that the model must have; code of the user's runs only if this names it.
        dataset: the data set; by default the one that the model was trained on, if it is built in.
        data_dir: a folder to read in place of built-in or downloaded files.
        skip_corrupt: leave out image files that cannot be read.
        device: auto, cpu or cuda.

    Raises:
        KdtrainError: the model or the data cannot be read, or do not fit together.
    """
    on = resolve_device(device)
    model = open_model(Path(checkpoint), arch, device=on, threads=len(available_cores()))
    folder = None if data_dir is None else Path(data_dir)
    data = open_data(model, dataset, folder, skip_corrupt=skip_corrupt)
    return EvaluatedModel(
        model, data, Evaluation.from_logits(predict_test_set(model, data), data.test.labels)
    )


def predict_test_set(model: Predictor, data: Dataset) -> Logits:
    """Returns (N, classes) float32 logits of a data set's N test images; shows a progress bar."""
    images = data.test.images
    starts = range(0, len(images), IMAGES_AT_ONCE)
    batches = progress_bar("test set", len(starts), "batch", starts)
    return np.concatenate([model.logits(images[start : start + IMAGES_AT_ONCE]) for start in batches])
