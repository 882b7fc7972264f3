"""The callback that writes metrics.jsonl and result.json."""

from __future__ import annotations

import json
from typing import Any

from kdtrain.engine.callback import Callback
from kdtrain.engine.events import EpochEnd, EvalEnd, FitEnd
from kdtrain.engine.run import Run
from kdtrain.errors import KdtrainError
from kdtrain.runtime.files import write_text
from kdtrain.store.metrics_file import NAME, read_metrics, training_seconds
from kdtrain.store.record import RESULT, FitRecord, read_record, write_record


class RunLog(Callback):
    """Writes a line per epoch to ``metrics.jsonl``, and the end of the fit to ``result.json``.

    A finished run that is resumed keeps its ``result.json``, unless another epoch is trained.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.finished = False

    def on_fit_start(self, run: Run) -> None:
        """Writes the status ``running``; a run that keeps it was killed.

        A resumed run keeps its lines before the last finished epoch. That epoch's line is written again,
        because a kill between checkpoint and line may have left it out.
        """
        self.rows, self.finished = [], False
        if run.resumed is not None:
            self.rows = [row for row in read_metrics(run.directory) if row["epoch"] < run.resumed.epoch]
            self._add(run, run.resumed)
            self.finished = _is_finished(run)
        if not self.finished:
            write_record(run.directory, FitRecord(status="running"))

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        """Writes the status ``running`` if a finished run goes on."""
        if self.finished:
            self.finished = False
            write_record(run.directory, FitRecord(status="running"))

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Adds the epoch's line; the whole file is replaced."""
        self._add(run, event)

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Writes how the fit ended."""
        if self.finished:
            return
        record = FitRecord(
            status=event.status.value,
            reason=event.reason,
            epochs=event.epoch,
            steps=event.step,
            seconds=training_seconds(self.rows),
        )
        write_record(run.directory, record)

    def _add(self, run: Run, event: EpochEnd) -> None:
        row = {
            "epoch": event.epoch,
            "step": event.step,
            **dict(sorted(event.metrics.items())),  # the order that they have in a checkpoint, too
            "learning_rate": event.learning_rate,
            "images_per_second": round(event.images_per_second, 1),
            "train_seconds": round(event.seconds, 3),
            "eval_seconds": round(event.eval_seconds, 3),
        }
        self.rows.append(row)
        write_text(run.directory / NAME, "\n".join(map(json.dumps, self.rows)) + "\n")


def _is_finished(run: Run) -> bool:
    """Returns whether the run that is resumed had ended by itself; a damaged file says nothing."""
    try:
        record = read_record(run.directory / RESULT, FitRecord)
    except KdtrainError:
        return False
    return record is not None and record.is_trained
