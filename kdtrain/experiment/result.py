"""What a trained model is reported by: the figures that a run's files and tables are made of."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.experiment.config import FitConfig
from kdtrain.experiment.modes import MODES
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.metrics.fidelity import Fidelity
from kdtrain.runtime.files import write_text
from kdtrain.runtime.regular_files import read_text
from kdtrain.store.checkpoint import SavedModel
from kdtrain.store.event_file import EventFile, write_results

_AGREEMENT = "test/agreement"
_SUFFIX = ".teacher"
_LARGEST = 1 << 20  # bytes of result.json; it has 1,000


@dataclass(frozen=True)
class FitResult:
    """A network whose training is over.

    Attributes:
        saved: its best weights by the held-out images.
        history: a row of figures per epoch, as in metrics.jsonl.
    """

    saved: SavedModel
    history: tuple[dict[str, Any], ...] = ()

    @property
    def seconds(self) -> float:
        """What its epochs took, evaluations included; 0 for a model that was there before."""
        return float(sum(row["train_seconds"] + row["eval_seconds"] for row in self.history))


@dataclass(frozen=True, eq=False)
class TestedModel:
    """A model, and how it did on the test set.

    Attributes:
        mode: how it was trained.
        seed: the seed it was trained with.
        saved: its best weights.
        parameters: how many values the network has.
        multiply_adds: how many its linear layers and convolutions do for one image.
        test: on the test set.
        logits: (test images, classes) what it made of the test set, in the data's order.
        seconds: what its epochs took, evaluations included; 0 for a model that was there before.
        history: a row of figures per epoch, as in metrics.jsonl.
        directory: the run directory; None for a model that was there before.
    """

    mode: str
    seed: int
    saved: SavedModel
    parameters: int
    multiply_adds: int
    test: Evaluation
    logits: npt.NDArray[np.float32]
    seconds: float = 0.0
    history: tuple[dict[str, Any], ...] = ()
    directory: Path | None = None


def file_results(trained: TestedModel, directory: Path, config: FitConfig) -> None:
    """Adds the test figures to result.json and to TensorBoard."""
    test = trained.test
    path = directory / "result.json"
    result = json.loads(read_text(path, _LARGEST)) | {
        "mode": trained.mode,
        "seed": trained.seed,
        "parameters": trained.parameters,
        "best": trained.saved.card.metrics,
        "test": {
            "accuracy": test.accuracy,
            "cross_entropy": test.cross_entropy,
            "errors": test.errors,
            "images": test.images,
            "calibration_error": test.calibration_error,
        },
    }
    write_text(path, json.dumps(result, indent=2) + "\n")
    metrics = {
        "test/accuracy": test.accuracy,
        "test/cross_entropy": test.cross_entropy,
        "test/calibration_error": test.calibration_error,
    }
    step = trained.history[-1]["step"]
    write_results(directory, _hyperparameters(trained, config), metrics, step, later=[_AGREEMENT])


def file_fidelity(trained: TestedModel, fidelity: Fidelity) -> None:
    """Adds to TensorBoard how far a student goes with its teacher, which takes both their logits."""
    if trained.directory is None:
        return
    for earlier in trained.directory.glob(f"events.*{_SUFFIX}"):
        earlier.unlink()  # of the same run, before it was resumed
    with contextlib.closing(EventFile(trained.directory, _SUFFIX)) as file:
        values = {_AGREEMENT: fidelity.agreement, "test/kl_from_teacher": fidelity.divergence}
        file.add_scalars(values, trained.history[-1]["step"])


def _hyperparameters(trained: TestedModel, config: FitConfig) -> dict[str, str | int | float]:
    """Returns what the HParams tab shows: the same names for every mode, and nothing that decides nothing."""
    mode = MODES[trained.mode]
    return {
        "mode": trained.mode,
        "arch": trained.saved.card.arch,
        "dataset": trained.saved.card.dataset,
        "val_size": "default" if config.val_size is None else config.val_size,
        "omit_class": " ".join(config.omit_class) if mode.network == "student" else "",
        "limit_train": config.limit_train or 0,
        "seed": trained.seed,
        "epochs": config.epochs_for(mode.network),
        "batch_size": config.batch_size,
        "optimizer": config.optimizer,
        "lr": config.peak_lr,
        "schedule": config.schedule,
        "augment": config.augment_for(mode.network),
        "alpha": config.alpha if mode.has_teacher else 0.0,  # without soft labels their weight is 0
        "temperature": config.temperature,
        "plugin": " ".join(config.plugin),
    }
