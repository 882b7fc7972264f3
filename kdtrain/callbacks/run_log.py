"""The callback that writes metrics.jsonl and result.json."""

from __future__ import annotations

import json

from kdtrain.engine.callback import Callback
from kdtrain.engine.events import EpochEnd, FitEnd
from kdtrain.engine.run import Run
from kdtrain.runtime.files import write_text
from kdtrain.store.metrics_file import NAME, read_metrics


class RunLog(Callback):
    """Writes a line per epoch to ``metrics.jsonl``, and the end of the fit to ``result.json``."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def on_fit_start(self, run: Run) -> None:
        """Writes the status ``running``; a run that keeps it was killed.

        A resumed run keeps its lines before the last finished epoch. That epoch's line is written again,
        because a kill between checkpoint and line may have left it out.
        """
        if run.resumed is not None:
            rows = read_metrics(run.directory)
            self.lines = [json.dumps(row) for row in rows if row["epoch"] < run.resumed.epoch]
            self._add(run, run.resumed)
        write_text(run.directory / "result.json", json.dumps({"status": "running"}, indent=2) + "\n")

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Adds the epoch's line; the whole file is replaced."""
        self._add(run, event)

    def on_fit_end(self, run: Run, event: FitEnd) -> None:
        """Writes how the fit ended."""
        result = {
            "status": event.status.value,
            "reason": event.reason,
            "epochs": event.epoch,
            "steps": event.step,
            "seconds": round(event.seconds, 3),
        }
        write_text(run.directory / "result.json", json.dumps(result, indent=2) + "\n")

    def _add(self, run: Run, event: EpochEnd) -> None:
        line = {
            "epoch": event.epoch,
            "step": event.step,
            **event.metrics,
            "learning_rate": event.learning_rate,
            "images_per_second": round(event.images_per_second, 1),
            "train_seconds": round(event.seconds, 3),
            "eval_seconds": round(event.eval_seconds, 3),
        }
        self.lines.append(json.dumps(line))
        write_text(run.directory / NAME, "\n".join(self.lines) + "\n")
