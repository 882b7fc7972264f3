"""The line that a fit leaves is no wider than a terminal."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from kdtrain import EpochEnd, Loader, Trainer, flow
from kdtrain.callbacks import Progress
from tests.engine.fits import Notes, mlp


@pytest.mark.parametrize(("seconds", "shown"), [(9.94, "9.9 s"), (63.4, "63 s"), (632.7, "633 s")])
def test_a_line_has_room_in_80_columns_at_an_accuracy_of_100_percent(
    train: Loader, tmp_path: Path, caplog: pytest.LogCaptureFixture, seconds: float, shown: str
) -> None:
    notes = Notes()
    optimizer = partial(flow.optim.SGD, lr=0.1)
    Trainer(mlp(), optimizer, [notes]).fit(train, train, epochs=1, directory=tmp_path)
    [run], [end] = notes.runs, notes.epochs
    perfect = {**end.metrics, "val/accuracy": 1.0}
    with caplog.at_level("INFO", "kdtrain"):
        Progress("student_kd/0").on_epoch_end(
            run, EpochEnd(end.epoch, end.step, perfect, end.images, seconds, 0.0, end.learning_rate)
        )
    [line] = caplog.messages
    assert "accuracy 100.00%" in line
    assert line.endswith(shown)
    assert len(line.replace("1/1", "120/120")) <= 80
