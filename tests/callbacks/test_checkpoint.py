"""Checkpoints: which epoch is the best, and what `last` holds."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain import Callback, Checkpoint, EarlyStopping, EvalEnd, Loader, Run, Trainer, flow, load_model
from kdtrain.engine.resume import flatten_optimizer
from kdtrain.errors import UsageError
from kdtrain.store.card import ModelCard
from kdtrain.store.checkpoint import Weights, load_tensors, snapshot
from tests.conftest import Fit
from tests.engine.fits import mlp


class Keeper(Callback):
    """Keeps every epoch's weights and metrics."""

    def __init__(self) -> None:
        self.weights: list[Weights] = []
        self.accuracies: list[float] = []

    def on_eval(self, run: Run, event: EvalEnd) -> None:
        self.weights.append(snapshot(run.model))
        self.accuracies.append(event.metrics["val/accuracy"])


def _same(first: Weights, second: Weights) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_best_is_the_latest_epoch_of_highest_accuracy(fit: Fit, card: ModelCard, tmp_path: Path) -> None:
    keeper = Keeper()
    fit(keeper, Checkpoint(card), epochs=8)
    accuracies = np.array(keeper.accuracies)
    latest = int(np.flatnonzero(accuracies == accuracies.max())[-1])
    best = load_model(tmp_path / "checkpoints" / "best.safetensors")
    assert _same(best.weights, keeper.weights[latest])
    assert best.card.metrics["val/accuracy"] == accuracies.max()
    last = load_model(tmp_path / "checkpoints" / "last.safetensors")
    assert _same(last.weights, keeper.weights[-1])


def test_with_few_held_out_images_the_latest_epoch_within_one_standard_error_is_kept(
    fit: Fit, card: ModelCard, tmp_path: Path, validation: Loader
) -> None:
    """The bound follows the best accuracy so far, with two more right and two more wrong images."""
    keeper = Keeper()
    fit(keeper, Checkpoint(card, standard_errors=1.0), epochs=8)
    number, chosen, best = validation.num_images, 0, 0.0
    for epoch, accuracy in enumerate(keeper.accuracies):
        best = max(best, accuracy)
        share = (round(best * number) + 2) / (number + 4)
        if accuracy > best - np.sqrt(share * (1 - share) / (number + 4)) or accuracy == best:
            chosen = epoch
    kept = load_model(tmp_path / "checkpoints" / "best.safetensors")
    assert _same(kept.weights, keeper.weights[chosen])
    assert kept.card.metrics["val/accuracy"] == keeper.accuracies[chosen]


def test_standard_errors_are_those_of_an_accuracy(card: ModelCard) -> None:
    with pytest.raises(UsageError, match="standard_errors 1 is for the monitor 'val/accuracy' alone"):
        Checkpoint(card, "val/cross_entropy", "min", standard_errors=1.0)


@pytest.mark.parametrize(("mode", "chosen"), [("max", 2), ("min", 4)])
def test_of_given_metrics_the_right_epoch_is_kept(
    train: Loader,
    validation: Loader,
    card: ModelCard,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    chosen: int,
) -> None:
    """The accuracies are made up, the evaluation that reports them is not called by a callback."""
    values = [0.5, 0.7, 0.7, 0.3, 0.3, 0.6]
    left = iter(values)
    monkeypatch.setattr(
        "kdtrain.engine.trainer._task_metrics", lambda logits, loader: {"accuracy": next(left)}
    )
    keeper = Keeper()
    checkpoint = Checkpoint(card, mode=mode)  # type: ignore[arg-type]
    trainer = Trainer(mlp(), partial(flow.optim.SGD, lr=0.1), [keeper, checkpoint])
    trainer.fit(train, validation, epochs=6, directory=tmp_path)
    assert keeper.accuracies == values
    assert _same(load_model(tmp_path / "checkpoints" / "best.safetensors").weights, keeper.weights[chosen])


@pytest.mark.parametrize(
    ("optimizer", "state"),
    [
        (partial(flow.optim.Adam, lr=1e-3), {"exp_avg", "exp_avg_sq"}),
        (partial(flow.optim.Adadelta, lr=1.0), {"square_avgs", "acc_deltas"}),
        (partial(flow.optim.SGD, lr=0.1, momentum=0.9), {"momentum_buf"}),
    ],
)
def test_last_holds_what_a_resume_needs(
    train: Loader, validation: Loader, card: ModelCard, tmp_path: Path, optimizer: Any, state: set[str]
) -> None:
    student, callbacks = mlp(), [EarlyStopping(patience=7), Checkpoint(card)]
    Trainer(student, optimizer, callbacks).fit(train, validation, epochs=2, directory=tmp_path)
    tensors, header = load_tensors(tmp_path / "checkpoints" / "last.safetensors")
    assert (header["end"]["epoch"], header["end"]["step"]) == (2, 8)
    assert set(header["callbacks"]) == {"EarlyStopping", "Checkpoint"}
    assert header["callbacks"]["EarlyStopping"] == callbacks[0].state_dict()
    assert {name.split("/")[2] for name in tensors if name.startswith("optimizer/")} == state
    weights = {f"model/{name}" for name in student.state_dict()}
    assert {name for name in tensors if name.startswith("model/")} == weights
    assert header["optimizer"]["param_groups"][0]["params"] == [0, 1, 2, 3, 4, 5]


def test_the_optimizers_state_is_copied_and_not_shared(student: flow.nn.Module, train: Loader) -> None:
    optimizer = flow.optim.Adam(student.parameters(), lr=1e-3)

    def step() -> None:
        batch = next(iter(train.epoch(1)))
        optimizer.zero_grad()
        flow.nn.functional.cross_entropy(student(batch.inputs), batch.targets).backward()
        optimizer.step()

    step()
    saved, values = flatten_optimizer(optimizer)
    before = {name: array.copy() for name, array in saved.items()}
    step()
    assert _same(before, saved)
    assert not _same(before, flatten_optimizer(optimizer)[0])
    assert values["step"] + 1 == flatten_optimizer(optimizer)[1]["step"]
