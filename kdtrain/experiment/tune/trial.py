"""A trial of ``kdtrain tune``: its training, the figures of its epochs, and its score."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from kdtrain.errors import CallbackError, NonFiniteError
from kdtrain.experiment.fit import FitSpec
from kdtrain.experiment.result import FitResult
from kdtrain.metrics.names import ACCURACY, CROSS_ENTROPY
from kdtrain.runtime.console import silence
from kdtrain.store.metrics_file import read_metrics, training_seconds
from kdtrain.store.record import RESULT, FitRecord, read_record
from kdtrain.store.search_record import RungScore

logger = logging.getLogger(__name__)

Row = Mapping[str, Any]
"""The figures of an epoch, as in metrics.jsonl."""


def rows_until(directory: Path, end: int) -> list[Row]:
    """Returns the figures of a run's epochs up to ``end``; none if it has not begun."""
    return [row for row in read_metrics(directory) if row["epoch"] <= end]


def is_trained(directory: Path, end: int) -> bool:
    """Returns whether a run has finished the rung up to the epoch ``end``.

    A kill may leave the figures of an epoch without its checkpoint, so the last epoch's do not suffice.
    """
    epochs = [row["epoch"] for row in read_metrics(directory)]
    if max(epochs, default=0) > end:
        return True
    record = read_record(directory / RESULT, FitRecord)
    return end in epochs and record is not None and record.is_trained


def train_quietly(train: Callable[[], FitResult], spec: FitSpec) -> list[Row]:
    """Trains a trial, prints one line, and returns the figures of its epochs; none if its loss diverges."""
    try:
        with silence(bars=True):
            rows: list[Row] = list(train().history)
    except (CallbackError, NonFiniteError) as error:
        if not isinstance(error if isinstance(error, NonFiniteError) else error.__cause__, NonFiniteError):
            raise
        logger.info(f"{spec.name}: failed, {error}")
        return []
    last = rows[-1]
    logger.info(
        f"{spec.name:<20} epoch {last['epoch']}  held-out accuracy {last[ACCURACY]:.2%}"
        f"  cross-entropy {last[CROSS_ENTROPY]:.4f}"
    )
    return rows


def rung_score(of_seeds: list[list[Row]], end: int) -> RungScore:
    """Returns the score of a trial in the rung up to ``end``: that of the last epoch, mean over the seeds."""
    last = [rows[-1] for rows in of_seeds]
    accuracies = tuple(float(row[ACCURACY]) for row in last)
    return RungScore(
        epochs=end,
        accuracy=float(np.mean(accuracies)),
        cross_entropy=float(np.mean([row[CROSS_ENTROPY] for row in last])),
        accuracies=accuracies,
        seconds=training_seconds(row for rows in of_seeds for row in rows),
    )
