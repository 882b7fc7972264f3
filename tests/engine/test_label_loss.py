"""Losses on labels of batches in which some images have no label: exact means over the others."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import scipy.special

from kdtrain import Batch, Objective, Output, flow
from kdtrain.engine import losses as losses_of_engine
from kdtrain.errors import KdtrainError
from plugins.label_smoothing import LabelSmoothing

LABELS = np.array([2, 0, 1, 0, 0])
LABELLED = np.array([True, True, True, False, False])
ALL = np.ones(5, bool)
PARTNERS = np.array([1, 1, 0, 0, 0])
SHARE = np.array([0.5, 0.7, 1.0, 0.6, 0.9], np.float32)
WEIGHTS = np.array([0.5, 1.25, 3.0], np.float32)
"""Of the classes, as ``--balance loss`` has them."""


def batch_of(
    *, mixed: bool = False, labelled: npt.NDArray[np.bool_] = LABELLED, weighted: bool = False
) -> Batch:
    return Batch(
        flow.zeros(5, 1),
        flow.tensor(LABELS),
        flow.tensor(np.arange(5)),
        mixup_targets=flow.tensor(PARTNERS) if mixed else None,
        mixup_lambda=flow.tensor(SHARE) if mixed else None,
        labelled=None if labelled.all() else flow.tensor(labelled),
        label_count=None if labelled.all() else float(labelled.sum()),
        class_weights=flow.tensor(WEIGHTS) if weighted else None,
    )


@pytest.mark.parametrize("labelled", [LABELLED, ALL])
@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("in_numpy", [False, True])
@pytest.mark.parametrize("epsilon", [0.0, 0.2])
def test_mean_and_gradient_are_those_of_soft_labels_over_labelled_images_alone(
    labelled: npt.NDArray[np.bool_],
    mixed: bool,
    epsilon: float,
    weighted: bool,
    in_numpy: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses_of_engine, "small_in_numpy", lambda logits: in_numpy)
    values = np.random.default_rng(1).normal(scale=3, size=(5, 3)).astype(np.float32)
    objective = Objective.task()
    share = SHARE[:, None].astype(np.float64) if mixed else np.ones((5, 1))
    smooth = (1 - epsilon) * np.eye(3) + epsilon / 2 * (1 - np.eye(3))
    weights = WEIGHTS if weighted else np.ones(3)
    if epsilon:
        objective = LabelSmoothing(epsilon).configure(objective)
    target = weights[:, None] * smooth
    soft = share * target[LABELS] + (1 - share) * target[PARTNERS]
    logits = flow.tensor(values, requires_grad=True)
    batch = batch_of(mixed=mixed, labelled=labelled, weighted=weighted)
    losses = objective(batch, Output(logits))
    losses["total"].backward()
    log_p = scipy.special.log_softmax(values.astype(np.float64), axis=1)
    expected = -(soft * log_p).sum(axis=1)[labelled].mean()
    assert losses["task"].item() == pytest.approx(expected, rel=1e-6)
    gradient = (soft.sum(axis=1, keepdims=True) * np.exp(log_p) - soft) / labelled.sum() * labelled[:, None]
    np.testing.assert_allclose(logits.grad.numpy(), gradient, atol=1e-6)
    assert not logits.grad.numpy()[~labelled].any()


def test_labels_that_are_not_there_cannot_be_read() -> None:
    """A term that takes the class 0 for them would train on wrong labels."""

    def of_another_author(batch: Batch, output: Output) -> flow.Tensor:
        return flow.nn.functional.cross_entropy(output.logits, batch.targets)

    with pytest.raises(ValueError, match=r"no label \(--labels, --transfer-data\).*batch.label_loss"):
        _ = batch_of().targets
    objective = Objective.task().add("mine", of_another_author)
    with pytest.raises(KdtrainError, match=r"term 'mine', .*test_label_loss.py line \d+: .*no label"):
        objective(batch_of(), Output(flow.zeros(5, 3)))
    whole = batch_of(labelled=ALL)
    assert whole.targets.numpy().tolist() == LABELS.tolist()
    assert len(whole) == len(batch_of()) == 5
