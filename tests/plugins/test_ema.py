"""Averaged weights: the right ones, evaluated and kept in place of the raw ones, and resumed."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain import BatchEnd, Callback, Checkpoint, EvalEnd, Loader, Run, Trainer, flow
from kdtrain.data.dataset import Dataset
from kdtrain.engine.resume import load_state
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import load_model, load_tensors, snapshot
from plugins.ema import Ema
from tests.cli.conftest import Call
from tests.engine.fits import mlp
from tests.runs import assert_same_tensors
from tests.tools import read_tested

ADAM = partial(flow.optim.Adam, lr=1e-2)


class Witness(Callback):
    """Averages by NumPy, in float64."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.average: dict[str, Any] = {}
        self.metrics: list[float] = []

    def on_fit_start(self, run: Run) -> None:
        self.average = {name: array.astype(np.float64) for name, array in snapshot(run.model).items()}

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        keep = min(self.decay, event.step / (event.step + 9))
        weights: dict[str, Any] = snapshot(run.model)
        for name, array in weights.items():
            self.average[name] = keep * self.average[name] + (1 - keep) * array

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        self.metrics.append(event.metrics["val/cross_entropy"])


class Broken(Callback):
    def on_batch(self, run: Run, event: BatchEnd) -> None:
        if event.epoch == 3:
            raise KeyboardInterrupt


def test_the_average_is_evaluated_and_kept_and_training_does_not_notice(
    train: Loader, validation: Loader, tmp_path: Path, card: ModelCard
) -> None:
    raw = mlp()
    Trainer(raw, ADAM).fit(train, validation, epochs=3, directory=tmp_path / "raw")
    model, witness = mlp(), Witness(0.9)
    trainer = Trainer(model, ADAM, [Checkpoint(card), Ema(0.9), witness])
    trainer.fit(train, validation, epochs=3, directory=tmp_path)
    for name, array in snapshot(raw).items():
        np.testing.assert_array_equal(array, snapshot(model)[name])
    best, header = load_tensors(tmp_path / "checkpoints/best.safetensors")
    last, _ = load_tensors(tmp_path / "checkpoints/last.safetensors")
    for name, average in witness.average.items():
        np.testing.assert_allclose(best[name].astype(np.float64), average, atol=1e-6)
        np.testing.assert_array_equal(last[f"model/{name}"], snapshot(model)[name])
        np.testing.assert_array_equal(last[f"term/0/{name}"], best[name])
    averaged = mlp()
    averaged.load_state_dict({name: flow.tensor(array) for name, array in best.items()})
    measured = Trainer(averaged, ADAM).evaluate(validation)["cross_entropy"]
    assert measured == witness.metrics[-1] == header["metrics"]["val/cross_entropy"]


def test_a_resumed_average_goes_on_bit_for_bit(
    train: Loader, validation: Loader, tmp_path: Path, card: ModelCard
) -> None:
    def fit(name: str, *more: Callback, **options: Any) -> None:
        trainer = Trainer(mlp(), ADAM, [Checkpoint(card), Ema(0.9), *more])
        trainer.fit(train, validation, epochs=4, directory=tmp_path / name, **options)

    fit("whole")
    with pytest.raises(KeyboardInterrupt):
        fit("halves", Broken())
    fit("halves", resume=load_state(tmp_path / "halves/checkpoints/last.safetensors"))
    for name in ("best", "last"):
        file = f"checkpoints/{name}.safetensors"
        assert_same_tensors(tmp_path / "halves" / file, tmp_path / "whole" / file)


def test_statistics_are_copied(train: Loader, validation: Loader, tmp_path: Path) -> None:
    flow.manual_seed(0)
    layers = (flow.nn.Flatten(), flow.nn.BatchNorm1d(784), flow.nn.Linear(784, 10))
    model, ema = flow.nn.Sequential(*layers), Ema()
    Trainer(model, ADAM, [ema]).fit(train, validation, epochs=1, directory=tmp_path)
    for average, value in zip(ema.average.buffers(), model.buffers(), strict=True):
        np.testing.assert_array_equal(average.numpy(), value.numpy())


def test_from_the_command_line_tested_model_is_average(tmp_path: Path, spawn: Call, mnist: Dataset) -> None:
    flags = ("--mode", "student", "--epochs", "1", "--limit-train", "1280", "--val-size", "128")
    spawn("fit", *flags, "--plugin", "ema,decay=0.9", cwd=tmp_path)
    run = tmp_path / "logs/student/version_0"
    tested = read_tested(run)["test_cross_entropy_nats"]
    average, last = (load_model(run / f"checkpoints/{name}.safetensors").build() for name in ("best", "last"))
    images = mnist.normalization.apply(mnist.test.images)
    test = Loader(images, mnist.test.labels, 500, num_classes=10)
    trainer = Trainer(last, ADAM)
    assert trainer.evaluate(test, average)["cross_entropy"] == pytest.approx(tested)
    assert trainer.evaluate(test)["cross_entropy"] != pytest.approx(tested)
