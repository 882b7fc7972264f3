"""The results of a fit and of its test, and the files that record them."""

from __future__ import annotations

import contextlib
import logging
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from kdtrain.data.dataset import Dataset
from kdtrain.experiment.loaders import count_copies, count_training, count_validation
from kdtrain.experiment.modes import MODES, controls_of
from kdtrain.experiment.settings.config import FitConfig, named_recipe
from kdtrain.metrics.evaluation import Evaluation
from kdtrain.metrics.names import ACCURACY, CROSS_ENTROPY
from kdtrain.runtime.locations import short_name
from kdtrain.runtime.ranks import Ranks
from kdtrain.store.checkpoint import SavedModel
from kdtrain.store.conditions import ClassSizes, Conditions, Labels, Transfer
from kdtrain.store.event_file import EventFile, write_results
from kdtrain.store.kept_models import keep_model
from kdtrain.store.metrics_file import training_seconds
from kdtrain.store.record import (
    RESULT,
    EpochPoint,
    FitRecord,
    Model,
    ModelResult,
    TeacherInput,
    read_record,
    write_record,
)

logger = logging.getLogger(__name__)

_AGREEMENT = "test/agreement"
_SUFFIX = ".teacher"
_CHANCE = 3.0  # standard errors that chance explains
_FAR_APART = 1.0  # points


@dataclass(frozen=True, eq=False, repr=False)
class FitResult:
    """A network after its training.

    Attributes:
        saved: best weights by the validation images.
        history: one row of figures per epoch, as in metrics.jsonl.
    """

    saved: SavedModel
    history: tuple[dict[str, Any], ...] = ()

    def __repr__(self) -> str:
        return f"<FitResult {self.saved!r}, {len(self.history)} epochs>"

    def values(self) -> dict[str, Any]:
        """Returns what the training gives a ``ModelResult``: time, best epoch and held-out figures."""
        accuracy = self.saved.card.accuracy
        # Of equal epochs the latest is kept; there is none if metrics.jsonl has lost its row.
        best = self.saved.card.metrics
        shown = (ACCURACY, CROSS_ENTROPY)
        epochs = [row["epoch"] for row in self.history if all(row[name] == best.get(name) for name in shown)]
        points = [(row["epoch"], float(row[ACCURACY]), float(row[CROSS_ENTROPY])) for row in self.history]
        return {
            "seconds": training_seconds(self.history),
            "best_epoch": epochs[-1] if epochs else None,
            "held_out_accuracy": None if math.isnan(accuracy) else accuracy,
            "history": tuple(EpochPoint(*point) for point in points),
        }


@dataclass(frozen=True, eq=False, kw_only=True, repr=False)
class TestedModel:
    """A network, or a teacher of several, with its figures on the test set, and what only memory holds.

    Attributes:
        result: its record.
        test: figures on the test set.
        logits: (test images, classes) float32 logits over the test set, in the data's order.
        trained: its training; None for a teacher that existed already, and for several.
        directory: the run directory; None for a model that existed already, and for several teachers.
        warnings: sentences about its figures.
    """

    result: ModelResult
    test: Evaluation
    logits: npt.NDArray[np.float32]
    trained: FitResult | None = None
    directory: Path | None = None
    warnings: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """The file of the best weights."""
        return self.saved.path

    @property
    def saved(self) -> SavedModel:
        """The best weights, of a model that was trained here."""
        assert self.trained is not None, "it was trained here"
        return self.trained.saved

    @property
    def history(self) -> tuple[dict[str, Any], ...]:
        """One row of figures per epoch, as in metrics.jsonl; none of a model that existed already."""
        return () if self.trained is None else self.trained.history

    @property
    def seconds(self) -> float:
        """Training time (see ``training_seconds``); 0 for a model that existed already."""
        return self.result.seconds

    @property
    def best_epoch(self) -> int | None:
        """The epoch of the best weights; None if metrics.jsonl has lost its row."""
        return self.result.best_epoch

    @property
    def parameters(self) -> int:
        """Number of trainable values; 0 if unknown."""
        return self.result.parameters

    def __repr__(self) -> str:
        place = "" if self.directory is None else f" ({self.directory})"
        network = f"{self.result.model}, {self.result.arch}, seed {self.result.seed}"
        return f"<{type(self).__name__} {network}: {self.test}{place}>"


def model_result(model: Model, seed: int, arch: str, test: Evaluation, **values: Any) -> ModelResult:
    """Returns the record of a model that was tested.

    Args:
        model: its mode.
        seed: the seed that it was trained with.
        arch: its architecture.
        test: figures on the test set.
        values: further values of the record.
    """
    return ModelResult(
        model=model,
        seed=seed,
        arch=short_name(arch),
        images=test.images,
        errors=test.errors,
        accuracy=test.accuracy,
        cross_entropy=test.cross_entropy,
        calibration_error=test.calibration_error,
        balanced_accuracy=test.balanced_accuracy,
        macro_f1=test.macro_f1,
        **values,
    )


def facts_of(config: FitConfig, dataset: Dataset) -> dict[str, Any]:
    """Returns what the record of any run says of its settings and its data."""
    return {
        "name": config.name,
        "seed": config.seed,
        "dataset": config.dataset,
        "labels": config.labels,
        "recipe": named_recipe(config.recipe),
        "conditions": conditions_of(config, dataset),
    }


def conditions_of(config: FitConfig, dataset: Dataset) -> Conditions:
    """Returns what a command's report says of first weights, labels, and images without labels."""
    first = config.student_checkpoint
    labels = transfer = None
    if config.labels is not None:
        held_out = count_validation(dataset, config) if dataset.validation is None else 0
        labels = Labels(len(dataset.train), len(dataset.train) + dataset.without_labels, held_out)
    if dataset.transfer is not None and config.mode in ("student_kd", "compare"):
        students = ("student_kd", *controls_of(config))
        with_teacher = tuple(model for model in students if MODES[model].has_teacher)
        path = None if config.transfer_data is None else os.path.abspath(config.transfer_data)
        transfer = Transfer(path, len(dataset.transfer), config.transfer_share, with_teacher)
    return Conditions(
        student_checkpoint=None if first is None else os.path.abspath(first),
        labels=labels,
        transfer=transfer,
        training_images=count_training(dataset, config),
        copies=count_copies(dataset, config),
        classes=_class_sizes(dataset, config),
    )


def _class_sizes(dataset: Dataset, config: FitConfig) -> ClassSizes:
    labels, counts = np.unique(dataset.train.labels, return_counts=True)
    largest, smallest = int(counts.argmax()), int(counts.argmin())
    names = [dataset.classes[labels[number]] for number in (largest, smallest)]
    return ClassSizes(names[0], int(counts[largest]), names[1], int(counts[smallest]), config.balance)


def keep_best(models: Sequence[TestedModel], config: FitConfig, ranks: Ranks) -> None:
    """Copies the best of several models into the model-save directory, as --keep allows, and logs that.

    The highest accuracy on the validation images decides, then the order. Teachers that existed already
    count as none. Ranks other than 0 do nothing.

    Args:
        models: models of one mode.
        config: configuration of the command.
        ranks: the processes that trained them.
    """
    trained = [model for model in models if model.trained is not None]
    if ranks.rank != 0 or config.keep == "never" or not trained:
        return
    best = max(trained, key=lambda model: model.saved.card.accuracy)
    message = keep_model(
        best.saved,
        best.result.model,
        config.models,
        always=config.keep == "always",
        siblings=[model.saved.card for model in trained],
    )
    if message is not None:
        logger.info(message)


def file_results(
    model: TestedModel, config: FitConfig, dataset: Dataset, teachers: tuple[TeacherInput, ...]
) -> None:
    """Adds the test figures to the run's result.json and to TensorBoard, unless they are there already.

    Training removes them. So those that are there belong to these weights, and to a run that was finished
    before.
    """
    assert model.directory is not None, "it was trained here"
    earlier = read_record(model.directory / RESULT, FitRecord)
    assert earlier is not None, "the training has written it"
    if earlier.models:
        return
    test = model.test
    record = replace(
        earlier,
        mode=config.mode,
        **facts_of(config, dataset),
        sentences=model.warnings,
        models=(model.result,),
        teachers=teachers,
    )
    write_record(model.directory, record)
    metrics = {
        "test/accuracy": test.accuracy,
        "test/cross_entropy": test.cross_entropy,
        "test/calibration_error": test.calibration_error,
        "test/balanced_accuracy": test.balanced_accuracy,
        "test/macro_f1": test.macro_f1,
    }
    step = model.history[-1]["step"]
    write_results(model.directory, _hyperparameters(model, config), metrics, step, later=[_AGREEMENT])


def file_fidelity(model: TestedModel, result: ModelResult) -> None:
    """Adds a student's fidelity to its teacher, which its result in a comparison has, to TensorBoard."""
    if model.directory is None or result.agreement is None:
        return
    for earlier in model.directory.glob(f"events.*{_SUFFIX}"):
        earlier.unlink()  # written before the run was resumed
    with contextlib.closing(EventFile(model.directory, _SUFFIX)) as file:
        values = {_AGREEMENT: result.agreement, "test/kl_from_teacher": result.divergence or 0.0}
        file.add_scalars(values, model.history[-1]["step"])


def far_apart_sentence(
    name: str,
    held_out: tuple[float, int],
    test: tuple[float, int],
    *,
    may_have_seen: bool = False,
) -> str | None:
    """Returns a warning if held-out and test accuracy differ by more than chance explains, else None.

    Chance explains 3 standard errors of the difference between two proportions, which are taken to be
    equal. Differences of at most one point are no reason for a warning.

    Args:
        name: name of the model.
        held_out: accuracy on the held-out images, 0..1, and their number; 0 images: None is returned.
        test: accuracy on the test images, 0..1, and their number.
        may_have_seen: the model may have been trained on the held-out images.
    """
    (on_held_out, images), (on_test, test_images) = held_out, test
    if images == 0 or math.isnan(on_held_out):
        return None
    points = 100 * (on_held_out - on_test)
    pooled = (on_held_out * images + on_test * test_images) / (images + test_images)
    error = 100 * math.sqrt(pooled * (1 - pooled) * (1 / images + 1 / test_images))
    if abs(points) <= max(_FAR_APART, _CHANCE * error):
        return None
    cause = "the test images are of another kind"
    if may_have_seen and points > 0:
        cause += ", or it was trained on held-out images"
    return (
        f"Held-out and test accuracy of the {name} are {abs(points):.1f} points apart "
        f"({100 * on_held_out:.2f} % and {100 * on_test:.2f} %): {cause}; "
        "what is best on held-out images need not be best on test images."
    )


def _hyperparameters(model: TestedModel, config: FitConfig) -> dict[str, str | int | float]:
    """Returns the values of the HParams tab: the same keys for every mode; irrelevant ones are neutral."""
    mode = MODES[config.mode]
    return {
        "mode": config.mode,
        "arch": model.saved.card.arch,
        "dataset": model.saved.card.dataset,
        "val_size": "default" if config.val_size is None else config.val_size,
        "labels": config.labels or "all",
        "transfer_data": config.transfer_data.name if config.transfer_data else "",
        "transfer_share": config.transfer_share if config.transfer_data or config.labels else 0.0,
        "student_checkpoint": config.student_checkpoint.name if config.student_checkpoint else "",
        "omit_class": " ".join(config.omit_class) if mode.network == "student" else "",
        "limit_train": config.limit_train or 0,
        "seed": config.seed,
        "epochs": config.epochs_for(mode.network),
        "batch_size": config.batch_size,
        "optimizer": config.optimizer,
        "lr": config.peak_lr,
        "schedule": config.schedule,
        "weight_decay": config.weight_decay,
        "clip_grad_norm": config.clip_grad_norm or 0.0,  # 0: no limit
        "augment": config.augment_for(mode.network),
        "balance": config.balance,
        "monitor": config.monitor,
        "alpha": config.alpha if mode.has_teacher else 0.0,  # no soft labels: weight 0
        "temperature": config.temperature,
        "plugin": " ".join(config.plugin),
    }
