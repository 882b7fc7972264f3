"""The gradient's norm is the right number, at the right steps, where TensorBoard finds it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from kdtrain import BatchEnd, Callback, KdtrainError, Loader, Run, Trainer, UsageError, flow
from kdtrain.callbacks import TensorBoard
from plugins.grad_norm import GradNorm

SGD = partial(flow.optim.SGD, lr=0.1)


class Witness(Callback):
    """Works the norm out from the gradients, by NumPy in float64."""

    def __init__(self) -> None:
        self.norms: dict[int, float] = {}

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        gradients = [p.grad.numpy().astype(np.float64).ravel() for p in run.model.parameters()]
        self.norms[event.step] = float(np.linalg.norm(np.concatenate(gradients)))


class BreakDown(Callback):
    def on_batch(self, run: Run, event: BatchEnd) -> None:
        if event.step == 3:
            raise ValueError("broken down")


def shown(directory: Path, tag: str) -> dict[int, float]:
    """A tag's values by step, as TensorBoard reads them."""
    events = EventAccumulator(str(directory)).Reload()
    return {event.step: event.value for event in events.Scalars(tag)}


def test_norm_is_that_of_all_gradients_and_reaches_tensorboard(
    tmp_path: Path, student: flow.nn.Module, train: Loader, validation: Loader
) -> None:
    witness = Witness()
    callbacks = [TensorBoard(every=1), GradNorm(every=3), witness]
    Trainer(student, SGD, callbacks).fit(train, validation, epochs=2, directory=tmp_path)
    norms = shown(tmp_path, "grad_norm")
    assert list(norms) == [3, 6]
    for step, norm in norms.items():
        assert norm == pytest.approx(witness.norms[step], rel=1e-6)
    assert list(shown(tmp_path, "loss/total")) == list(range(1, 9)), "the run's own figures are there as well"


def test_watching_changes_nothing(
    tmp_path: Path, student: flow.nn.Module, train: Loader, validation: Loader
) -> None:
    start = {name: tensor.numpy().copy() for name, tensor in student.state_dict().items()}
    ends = []
    for number, callbacks in enumerate(([], [GradNorm(every=1)])):
        student.load_state_dict({name: flow.tensor(array) for name, array in start.items()})
        Trainer(student, SGD, callbacks).fit(train, validation, epochs=1, directory=tmp_path / str(number))
        ends.append({name: tensor.numpy().tobytes() for name, tensor in student.state_dict().items()})
    assert ends[0] == ends[1]


def test_figures_of_a_failed_fit_are_kept(
    tmp_path: Path, student: flow.nn.Module, train: Loader, validation: Loader
) -> None:
    trainer = Trainer(student, SGD, [GradNorm(every=1), BreakDown()])
    with pytest.raises(KdtrainError, match="broken down"):
        trainer.fit(train, validation, epochs=1, directory=tmp_path)
    assert list(shown(tmp_path, "grad_norm")) == [1, 2, 3]


@pytest.mark.parametrize("every", [0, -1])
def test_steps_between_measurements_must_be_positive(every: int) -> None:
    with pytest.raises(UsageError, match=f"every={every}: it must be at least 1"):
        GradNorm(every=every)
