"""The results of a fit and of its test, and the files that record them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.experiment.modes import MODES
from kdtrain.experiment.settings.config import FitConfig
from kdtrain.experiment.teachers.find import TrainedTeacher
from kdtrain.metrics import ACCURACY
from kdtrain.metrics.evaluation import Evaluation, Fidelity
from kdtrain.report.conditions import Copies
from kdtrain.runtime.files import write_text
from kdtrain.runtime.locations import short_name
from kdtrain.runtime.ranks import Ranks
from kdtrain.runtime.regular_files import read_text
from kdtrain.store.checkpoint import SavedModel
from kdtrain.store.event_file import EventFile, write_results
from kdtrain.store.kept_models import keep_model
from kdtrain.store.metrics_file import training_seconds

logger = logging.getLogger(__name__)

_AGREEMENT = "test/agreement"
_SUFFIX = ".teacher"
_LARGEST = 1 << 20  # bytes; result.json has about 1,000


@dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """A network after its training.

    Attributes:
        saved: best weights by the validation images.
        history: one row of figures per epoch, as in metrics.jsonl.
    """

    saved: SavedModel
    history: tuple[dict[str, Any], ...] = ()

    @property
    def seconds(self) -> float:
        """Training time (see ``training_seconds``)."""
        return training_seconds(self.history)

    def __repr__(self) -> str:
        return f"<FitResult {self.saved!r}, {len(self.history)} epochs>"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class Tested:
    """A network, or a teacher of several, and its figures on the test set.

    Attributes:
        mode: mode that trained it.
        seed: seed that it was trained with.
        arch: its architecture.
        parameters: number of trainable values; 0 if unknown.
        multiply_adds: multiply-adds of its linear layers and convolutions for one image; 0 if unknown.
        test: figures on the test set.
        logits: (test images, classes) float32 logits over the test set, in the data's order.
        seconds: training time (see ``training_seconds``); 0 for a model that existed already.
        history: one row of figures per epoch, as in metrics.jsonl.
        directory: the run directory; None for a model that existed already, and for several teachers.
        members: each of several teachers, whose mean probabilities this one's are.
    """

    mode: str
    seed: int
    arch: str
    parameters: int
    multiply_adds: int
    test: Evaluation
    logits: npt.NDArray[np.float32]
    seconds: float = 0.0
    history: tuple[dict[str, Any], ...] = ()
    directory: Path | None = None
    members: tuple[Member, ...] = ()

    def __repr__(self) -> str:
        place = "" if self.directory is None else f" ({self.directory})"
        network = f"{self.mode}, {short_name(self.arch)}, seed {self.seed}"
        return f"<{type(self).__name__} {network}: {self.test}{place}>"


@dataclass(frozen=True, eq=False, repr=False)
class Member:
    """One of several teachers.

    Attributes:
        path: its file.
        share: its share of the mean, 0 to 1.
        tested: its figures.
    """

    path: Path
    share: float
    tested: Tested

    def __repr__(self) -> str:
        return f"<Member {self.path}, share {self.share:.2g}: {self.tested.test}>"


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TestedModel(Tested):
    """A network of kdtrain's with its figures on the test set.

    Attributes:
        saved: best weights.
    """

    saved: SavedModel

    @property
    def path(self) -> Path:
        """The file of the best weights."""
        return self.saved.path

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best weights; None if metrics.jsonl has lost its row."""
        # Of equal epochs the latest is kept.
        epochs = [row["epoch"] for row in self.history if row[ACCURACY] == self.saved.card.accuracy]
        return epochs[-1] if epochs else None


def keep_best(models: Sequence[TestedModel], config: FitConfig, ranks: Ranks) -> None:
    """Copies the best of several models into the model-save directory, as --keep allows, and logs that.

    The highest accuracy on the validation images decides, then the order. Ranks other than 0 do nothing.

    Args:
        models: models of one mode.
        config: configuration of the command.
        ranks: the processes that trained them.
    """
    if ranks.rank != 0 or config.keep == "never":
        return
    best = max(models, key=lambda model: model.saved.card.accuracy)
    message = keep_model(
        best.saved,
        best.mode,
        config.models,
        always=config.keep == "always",
        siblings=[model.saved.card for model in models],
    )
    if message is not None:
        logger.info(message)


def file_results(
    model: TestedModel,
    directory: Path,
    config: FitConfig,
    copies: Copies | None,
    teacher: TrainedTeacher | None,
) -> None:
    """Adds the test figures to the run's result.json and to TensorBoard, unless they are there already.

    Training removes them. So those that are there belong to these weights, and to a run that was finished
    before.
    """
    test = model.test
    path = directory / "result.json"
    earlier = json.loads(read_text(path, _LARGEST))
    if "test" in earlier:
        return
    result = earlier | {
        "mode": model.mode,
        **({} if config.name is None else {"name": config.name}),
        "seed": model.seed,
        "parameters": model.parameters,
        "best_epoch": model.best_epoch,
        "best": model.saved.card.metrics,
        "test": {
            "accuracy": test.accuracy,
            "cross_entropy": test.cross_entropy,
            "errors": test.errors,
            "images": test.images,
            "calibration_error": test.calibration_error,
        },
    }
    if copies is not None:
        result["copies"] = copies.sentence
    if teacher is not None:
        result["teachers"] = teacher.to_json()
    write_text(path, json.dumps(result, indent=2) + "\n")
    metrics = {
        "test/accuracy": test.accuracy,
        "test/cross_entropy": test.cross_entropy,
        "test/calibration_error": test.calibration_error,
    }
    step = model.history[-1]["step"]
    write_results(directory, _hyperparameters(model, config), metrics, step, later=[_AGREEMENT])


def file_fidelity(model: Tested, fidelity: Fidelity) -> None:
    """Adds a student's fidelity to its teacher to TensorBoard."""
    if model.directory is None:
        return
    for earlier in model.directory.glob(f"events.*{_SUFFIX}"):
        earlier.unlink()  # written before the run was resumed
    with contextlib.closing(EventFile(model.directory, _SUFFIX)) as file:
        values = {_AGREEMENT: fidelity.agreement, "test/kl_from_teacher": fidelity.divergence}
        file.add_scalars(values, model.history[-1]["step"])


def _hyperparameters(model: TestedModel, config: FitConfig) -> dict[str, str | int | float]:
    """Returns the values of the HParams tab: the same keys for every mode; irrelevant ones are neutral."""
    mode = MODES[model.mode]
    return {
        "mode": model.mode,
        "arch": model.saved.card.arch,
        "dataset": model.saved.card.dataset,
        "val_size": "default" if config.val_size is None else config.val_size,
        "labels": config.labels or "all",
        "transfer_data": config.transfer_data.name if config.transfer_data else "",
        "transfer_share": config.transfer_share if config.transfer_data or config.labels else 0.0,
        "student_checkpoint": config.student_checkpoint.name if config.student_checkpoint else "",
        "omit_class": " ".join(config.omit_class) if mode.network == "student" else "",
        "limit_train": config.limit_train or 0,
        "seed": model.seed,
        "epochs": config.epochs_for(mode.network),
        "batch_size": config.batch_size,
        "optimizer": config.optimizer,
        "lr": config.peak_lr,
        "schedule": config.schedule,
        "weight_decay": config.weight_decay,
        "clip_grad_norm": config.clip_grad_norm or 0.0,  # 0: no limit
        "augment": config.augment_for(mode.network),
        "alpha": config.alpha if mode.has_teacher else 0.0,  # no soft labels: weight 0
        "temperature": config.temperature,
        "plugin": " ".join(config.plugin),
    }
