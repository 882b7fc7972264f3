"""A table of a run's figures."""

from __future__ import annotations

import csv
import io

from kdtrain import Callback, EpochEnd, KdtrainError, Run, read_text, write_text

_LARGEST = 1 << 28  # bytes of a table; a row has about 200


class Csv(Callback):
    """Writes a row per epoch to ``metrics.csv``, in the run's directory, for spreadsheets and plots."""

    def __init__(self) -> None:
        self.rows: list[dict[str, str]] = []

    def on_fit_start(self, run: Run) -> None:
        """Reads a resumed run's rows before its last finished epoch, and writes that epoch's row again."""
        self.rows = []
        if run.resumed is None:
            return
        file = run.directory / "metrics.csv"
        try:
            rows = list(csv.DictReader(io.StringIO(read_text(file, _LARGEST)))) if file.exists() else []
            self.rows = [row for row in rows if int(row["epoch"]) < run.resumed.epoch]
        except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
            raise KdtrainError(f"{file} is damaged ({error}): fix it, or move it away.") from error
        self._add(run, run.resumed)

    def on_epoch_end(self, run: Run, event: EpochEnd) -> None:
        """Adds the epoch's row; the whole file is replaced."""
        self._add(run, event)

    def _add(self, run: Run, event: EpochEnd) -> None:
        values = {
            "epoch": event.epoch,
            "step": event.step,
            **event.metrics,
            "learning_rate": event.learning_rate,
            "train_seconds": round(event.seconds, 3),
            "eval_seconds": round(event.eval_seconds, 3),
        }
        self.rows.append({name: str(value) for name, value in values.items()})
        table = io.StringIO()
        writer = csv.DictWriter(table, list(self.rows[-1]), lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(run.directory / "metrics.csv", table.getvalue())
