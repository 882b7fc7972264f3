"""Several teachers in a fit: the mean of their softened probabilities is the target."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from kdtrain import BatchEnd, Callback, DistillationCallback, Loader, Run, Trainer, flow
from kdtrain.callbacks.distillation import SoftTargets
from kdtrain.engine.predict import predict_logits
from kdtrain.engine.recorder import Output, Teacher
from kdtrain.engine.teacher_network import Ensemble
from kdtrain.store.checkpoint import snapshot
from tests.engine.fits import mlp

SGD = partial(flow.optim.SGD, lr=0.1)
T = 3.0
WEIGHTS = (1.0, 3.0)


def softmax(logits: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    powers = np.exp(logits.astype(np.float64) - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@pytest.mark.parametrize("tables", [False, True])
def test_loss_is_the_divergence_from_the_mean_of_softened_probabilities(train: Loader, tables: bool) -> None:
    members = [mlp(7), mlp(8)]
    teacher = Teacher(Ensemble(members, WEIGHTS))
    logits = [predict_logits(member, train) for member in members]
    if tables:
        known = [flow.tensor(table) for table in logits]
        teacher.use_table(*(lambda batch, t=t: t.index_select(0, batch.indices) for t in known))
    batch = next(iter(train.epoch(1)))
    student = flow.tensor(np.random.default_rng(0).normal(0, 2, (len(batch), 10)).astype(np.float32))
    loss = SoftTargets(teacher, T)(batch, Output(student)).item()
    rows = batch.indices.numpy()
    mean = sum(w * softmax(table[rows] / T) for w, table in zip(WEIGHTS, logits, strict=True)) / sum(WEIGHTS)
    divergence = (mean * (np.log(mean) - np.log(softmax(student.numpy() / T)))).sum(axis=1)
    assert loss == pytest.approx(T**2 * divergence.mean(), rel=1e-5)


class Losses(Callback):
    """Notes the loss of each step."""

    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        self.losses.append(event.losses["kd"].item())


def test_a_teacher_twice_is_the_teacher_once(train: Loader, validation: Loader, tmp_path: Path) -> None:
    losses = []
    for teacher in (mlp(7), Ensemble([mlp(7), mlp(7)], (1.0, 2.0))):
        noted = Losses()
        callbacks = [DistillationCallback(teacher, T), noted]
        Trainer(mlp(), SGD, callbacks).fit(train, validation, epochs=1, directory=tmp_path)
        losses.append(noted.losses)
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


def test_other_weights_ask_no_teacher_again(train: Loader, validation: Loader, tmp_path: Path) -> None:
    members = [mlp(7), mlp(8)]
    asked: list[int] = []
    for member in members:
        member.register_forward_hook(lambda module, inputs, output: asked.append(len(output)))
    before = [snapshot(member) for member in members]
    counts = []
    for weights, temperature in ((WEIGHTS, 3.0), ((5.0, 1.0), 1.0)):
        callback = DistillationCallback(Ensemble(members, weights), temperature, cache_directory=tmp_path)
        Trainer(mlp(), SGD, [callback]).fit(train, validation, epochs=1, directory=tmp_path)
        counts.append(sum(asked))
        asked.clear()
    few = 2 * 16  # by which a resumed run recognises the teacher, or by which kept outputs are proved
    assert counts == [2 * train.num_images + few, 2 * few]
    for member, weights_before in zip(members, before, strict=True):
        assert all(np.array_equal(weights_before[name], array) for name, array in snapshot(member).items())
