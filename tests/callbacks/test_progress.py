"""The line of an epoch: no wider than a terminal, and with the time left where there is none."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path

import pytest

from kdtrain import EpochEnd, Loader, Trainer, flow
from kdtrain.callbacks import Progress
from tests.engine.fits import Notes, mlp


@pytest.mark.parametrize(
    ("epochs", "seconds", "shown", "left"),
    [
        *((1, 9.94, "9.9 s", ""), (1, 63.4, "63 s", ""), (1, 632.7, "633 s", "")),
        (3, 63.4, "63 s", "  about 02:06 left"),
    ],
)
def test_a_line_has_room_in_80_columns_at_an_accuracy_of_100_percent(
    train: Loader,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    epochs: int,
    seconds: float,
    shown: str,
    left: str,
) -> None:
    notes = Notes()
    optimizer = partial(flow.optim.SGD, lr=0.1)
    Trainer(mlp(), optimizer, [notes]).fit(train, train, epochs=1, directory=tmp_path)
    [run], [end] = notes.runs, notes.epochs
    run = dataclasses.replace(run, epochs=epochs)
    perfect = {**end.metrics, "val/accuracy": 1.0}
    with caplog.at_level("INFO", "kdtrain"):
        Progress("student_kd/0").on_epoch_end(
            run, EpochEnd(end.epoch, end.step, perfect, end.images, seconds, 0.0, end.learning_rate)
        )
    [line] = caplog.messages
    assert "accuracy 100.00%" in line
    assert line.endswith(shown + left)
    assert len(line.removesuffix(left).replace(f"1/{epochs}", "120/120")) <= 80
