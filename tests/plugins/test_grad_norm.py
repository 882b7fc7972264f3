"""GradNorm: the right number, at the right steps, where TensorBoard finds it."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kdtrain import BatchEnd, Callback, KdtrainError, Loader, Run, Trainer, UsageError, flow
from kdtrain.callbacks import TensorBoard
from plugins.grad_norm import GradNorm
from tests.tools import read_scalars

SGD = partial(flow.optim.SGD, lr=0.1)


class Witness(Callback):
    """Computes the norm from the gradients, by NumPy in float64."""

    def __init__(self) -> None:
        self.norms: dict[int, float] = {}

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        gradients = [p.grad.numpy().astype(np.float64).ravel() for p in run.model.parameters()]
        self.norms[event.step] = float(np.linalg.norm(np.concatenate(gradients)))


class BreakDown(Callback):
    def on_batch(self, run: Run, event: BatchEnd) -> None:
        if event.step == 3:
            raise ValueError("broken down")


def test_norm_is_that_of_all_gradients_and_reaches_tensorboard(
    tmp_path: Path, student: flow.nn.Module, train: Loader, validation: Loader
) -> None:
    witness = Witness()
    callbacks = [TensorBoard(every=1), GradNorm(every=3), witness]
    Trainer(student, SGD, callbacks).fit(train, validation, epochs=2, directory=tmp_path)
    norms = read_scalars(tmp_path)["grad_norm"]
    assert list(norms) == [3, 6]
    for step, norm in norms.items():
        assert norm == pytest.approx(witness.norms[step], rel=1e-6)
    assert list(read_scalars(tmp_path)["loss/total"]) == list(range(1, 9)), (
        "the run's own figures are there as well"
    )


def test_figures_of_a_failed_fit_are_kept(
    tmp_path: Path, student: flow.nn.Module, train: Loader, validation: Loader
) -> None:
    trainer = Trainer(student, SGD, [GradNorm(every=1), BreakDown()])
    with pytest.raises(KdtrainError, match="broken down"):
        trainer.fit(train, validation, epochs=1, directory=tmp_path)
    assert list(read_scalars(tmp_path)["grad_norm"]) == [1, 2, 3]


@pytest.mark.parametrize("every", [0, -1])
def test_steps_between_measurements_must_be_positive(every: int) -> None:
    with pytest.raises(UsageError, match=f"every={every}: it must be at least 1"):
        GradNorm(every=every)
