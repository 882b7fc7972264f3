"""The mistakes and the accuracy of each class that every run has in TensorBoard."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdtrain import Callback, EvalEnd, Run
from kdtrain.callbacks import TensorBoard
from kdtrain.callbacks.mistakes import Mistake, confident_mistakes, draw_mistakes
from kdtrain.callbacks.tensorboard import accuracies_of_classes
from tests.conftest import Fit
from tests.tools import read_scalars


class Stop(Callback):
    """Stops after an epoch; keeps its logits."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        self.logits, self.targets = event.logits, run.validation.targets
        if event.epoch == self.epoch:
            run.stop("enough")


def drawings(folder: Path) -> dict[int, Any]:
    events = EventAccumulator(str(folder)).Reload().Images("val/mistakes")
    return {event.step: Image.open(io.BytesIO(event.encoded_image_string)) for event in events}


def loader(images: np.ndarray[Any, Any], classes: list[str]) -> Any:
    return SimpleNamespace(inputs=images, targets=np.arange(len(images)) % len(classes), classes=classes)


def test_mistakes_come_by_falling_probability() -> None:
    logits = np.array([[9, 0], [0, 1], [0, 5], [0, np.log(4)]], np.float32)
    found = confident_mistakes(logits, np.array([0, 1, 0, 0]))
    assert [(mistake.position, mistake.predicted) for mistake in found] == [(2, 1), (3, 1)]
    assert found[1].probability == pytest.approx(0.8)
    assert confident_mistakes(logits, np.array([0, 1, 0, 0]), most=1) == found[:1]


def test_a_run_draws_them_up_to_ten_times_and_after_the_epoch_it_stops_in(fit: Fit, tmp_path: Path) -> None:
    stop = Stop(epoch=3)
    fit(TensorBoard(), stop, epochs=20)
    assert list(drawings(tmp_path)) == [2 * 4, 3 * 4]
    curves = read_scalars(tmp_path)
    for digit in range(10):
        recognised = stop.logits.argmax(axis=1)[stop.targets == digit] == digit
        assert curves[f"val_class_accuracy/{digit}"][12] == pytest.approx(recognised.mean())


def test_a_drawing_has_one_width_whatever_the_images_and_names_are() -> None:
    mistake = Mistake(0, 1, 0.999)
    names = ["a name that is far too long for its field", "Привет\n$1", ""]
    grey = loader(np.random.default_rng(0).normal(size=(9, 1, 28, 28)).astype(np.float32), names)
    colour = loader(np.zeros((9, 3, 200, 90), np.float32), names)
    sheets = [draw_mistakes(grey, [mistake]), draw_mistakes(colour, [Mistake(i, 2, 0.5) for i in range(5)])]
    assert {(sheet.shape[1], sheet.shape[2]) for sheet in sheets} == {(336, 3)}
    assert sheets[0].shape[0] < sheets[1].shape[0]
    assert np.ptp(sheets[0]) > 200, "not an empty sheet"


def test_classes_without_images_and_many_classes_have_no_curves() -> None:
    some = loader(np.zeros((2, 1, 4, 4)), ["a", "b", "c"])
    assert accuracies_of_classes(np.eye(3, dtype=np.float32)[[0, 2]], some) == {"a": 1.0, "b": 0.0}
    many = loader(np.zeros((31, 1, 4, 4)), [str(number) for number in range(31)])
    assert accuracies_of_classes(np.eye(31, dtype=np.float32), many) == {}
