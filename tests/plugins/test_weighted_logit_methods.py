"""The methods that weigh images or classes of the soft targets, each against its formula in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain import Batch, Output, flow, soft_target_loss
from plugins.logit_std import standardised
from plugins.nkd import Nkd, nkd_losses
from plugins.norm_kd import norm_kd_loss
from plugins.wsld import Wsld, image_weights, soft_divergences
from plugins.wttm import wttm_loss
from tests.plugins.reference import (
    FEW,
    Array,
    Data,
    Floats,
    assert_agrees,
    log_softmax,
    logits,
    objective_for,
)


@FEW
@given(logits(), st.floats(1, 10), st.floats(0.1, 4))
def test_nkd_agrees_with_its_formula(data: Data, temperature: float, gamma: float) -> None:
    student, teacher, targets = data
    rows = np.arange(len(targets))
    others = np.ones(teacher.shape, bool)
    others[rows, targets] = False

    def among_others(z: Any) -> Any:
        return log_softmax((z / temperature)[others].reshape(len(z), -1))

    exact = teacher.astype(np.float64)
    p, q = np.exp(log_softmax(exact))[rows, targets], np.exp(among_others(exact))

    def formula(z: Any) -> Any:
        of_label = p * log_softmax(z)[rows, targets]
        return -(of_label + gamma * temperature**2 * (q * among_others(z)).sum(axis=1)).mean()

    def loss(x: flow.Tensor) -> flow.Tensor:
        losses = nkd_losses(x, flow.tensor(teacher), flow.tensor(targets), gamma, temperature)
        return losses.mean().float()

    assert_agrees(loss, formula, student)


@FEW
@given(logits(), st.floats(0.05, 1))
def test_wttm_agrees_with_its_formula(data: Data, gamma: float) -> None:
    student, teacher, _ = data
    power = np.exp(log_softmax(teacher.astype(np.float64))) ** gamma
    total = power.sum(axis=1, keepdims=True)

    def formula(z: Any) -> Any:
        divergence = (power / total * (np.log(power / total) - log_softmax(z))).sum(axis=1)
        return (total[:, 0] * divergence).mean()

    assert_agrees(lambda x: wttm_loss(x, flow.tensor(teacher), gamma), formula, student)


def test_wttm_is_content_with_the_teachers_logits_divided_by_its_temperature() -> None:
    teacher = flow.tensor(np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32) * 6)
    assert wttm_loss(teacher * 0.25 + 1.0, teacher, 0.25).item() == pytest.approx(0, abs=1e-6)
    assert wttm_loss(teacher, teacher, 0.25).item() > 0.1


def wsld_formula(teacher: Array, targets: Any, temperature: float, weights: Array) -> Any:
    log_t = log_softmax(teacher / temperature)

    def formula(z: Any) -> Any:
        log_s = log_softmax(z / temperature)
        return temperature**2 * (weights * (np.exp(log_t) * (log_t - log_s)).sum(axis=1)).mean()

    return formula


def label_losses(z: Floats, targets: Any) -> Any:
    return -log_softmax(z.astype(np.float64))[np.arange(len(z)), targets]


@FEW
@given(logits(), st.floats(1, 10))
def test_wsld_agrees_with_its_formula(data: Data, temperature: float) -> None:
    student, teacher, targets = data
    ratio = label_losses(student, targets) / (label_losses(teacher, targets) + 1e-7)
    weights = 1 - np.exp(-ratio)  # constants: no gradient flows through them
    formula = wsld_formula(teacher.astype(np.float64), targets, temperature, weights)
    z_t, labels = flow.tensor(teacher), flow.tensor(targets)

    def loss(x: flow.Tensor) -> flow.Tensor:
        return (soft_divergences(x, z_t, temperature) * image_weights(x, z_t, labels)).mean().float()

    assert_agrees(loss, formula, student)


@FEW
@given(logits(), st.floats(0.5, 4))
def test_norm_kd_agrees_with_its_formula(data: Data, temperature: float) -> None:
    student, teacher, _ = data

    def softened(z: Any) -> tuple[Any, Any]:
        apart = z - z.mean(axis=1, keepdims=True)
        deviation = np.sqrt((apart * apart).sum(axis=1, keepdims=True) / (z.shape[1] - 1))
        own = temperature * (deviation + 1e-7)
        return log_softmax(z / own), own[:, 0]

    log_t, own = softened(teacher.astype(np.float64))

    def formula(z: Any) -> Any:
        return (own**2 * (np.exp(log_t) * (log_t - softened(z)[0])).sum(axis=1)).mean()

    assert_agrees(
        lambda x: norm_kd_loss(x, flow.tensor(teacher), temperature), formula, student, tolerance=2e-6
    )


def test_norm_kd_is_logit_standardisation_weighted_by_the_teachers_variance() -> None:
    student, teacher = np.random.default_rng(0).normal(size=(2, 1, 10)).astype(np.float32)
    z_s, z_t = flow.tensor(student), flow.tensor(teacher)
    standard = soft_target_loss(standardised(z_s), standardised(z_t), 2.0).item()
    assert norm_kd_loss(z_s, z_t, 2.0).item() == pytest.approx(standard * teacher.var(ddof=1), rel=1e-5)
    equal = flow.ones(2, 10, requires_grad=True)
    norm_kd_loss(equal, flow.ones(2, 10), 2.0).backward()
    assert np.isfinite(equal.grad.numpy()).all()


@pytest.mark.parametrize("plugin", [Nkd(), Wsld()], ids=["nkd", "wsld"])
def test_an_image_of_two_labels_has_the_loss_of_each_by_its_share(plugin: Any) -> None:
    student, teacher = np.random.default_rng(0).normal(size=(2, 4, 3)).astype(np.float32)
    plugin.configure(objective_for(flow.nn.Identity(), flow.nn.Identity()))
    images, indices = flow.tensor(teacher), flow.tensor(np.arange(4))
    labels, partners = (flow.tensor(np.array(row)) for row in ([0, 1, 2, 0], [1, 1, 0, 2]))
    mixed = Batch(images, labels, indices, None, partners, flow.ones(4) * 0.75)
    values = [
        plugin.loss(batch, Output(flow.tensor(student))).item()
        for batch in (mixed, Batch(images, labels, indices), Batch(images, partners, indices))
    ]
    assert values[0] == pytest.approx(0.75 * values[1] + 0.25 * values[2], rel=1e-6)
    assert values[1] != values[2]
