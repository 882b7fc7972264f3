"""The methods on logits, each against its formula in float64, and the properties that define them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain import Batch, LogitMethod, Output, flow, soft_target_loss
from plugins.dist import Dist, dist_loss
from plugins.dkd import Dkd, decoupled
from plugins.hard_labels import HardLabels
from plugins.logit_mse import LogitMse
from plugins.logit_std import LogitStd, standardised
from plugins.nkd import Nkd, nkd_losses
from plugins.norm_kd import NormKd, norm_kd_loss
from plugins.wsld import Wsld, image_weights, soft_divergences
from plugins.wttm import Wttm, wttm_loss
from tests.plugins.reference import (
    FEW,
    Array,
    Convolutional,
    Data,
    Floats,
    assert_agrees,
    batch_of,
    gradient_of,
    images_of,
    log_softmax,
    logits,
    objective_for,
)


def dkd_formula(teacher: Array, targets: Any, temperature: float) -> Any:
    """(TCKD, NCKD) of the paper's definitions: the binary and the renormalised distributions."""
    rows = np.arange(len(targets))
    others = np.ones(teacher.shape, bool)
    others[rows, targets] = False

    def parts(z: Any) -> Any:
        log_p = log_softmax(z / temperature)
        rest = log_softmax((z / temperature)[others].reshape(len(z), -1))
        log_rest = log_p[others].reshape(len(z), -1)[:, :1] - rest[:, :1]
        return np.stack([log_p[rows, targets], log_rest[:, 0]], axis=1), rest

    def formula(student: Any) -> Any:
        (b_t, q_t), (b_s, q_s) = parts(teacher), parts(student)
        tckd = (np.exp(b_t) * (b_t - b_s)).sum(axis=1)
        nckd = (np.exp(q_t) * (q_t - q_s)).sum(axis=1)
        return tckd * temperature**2, nckd * temperature**2

    return formula


@FEW
@given(logits(), st.floats(1, 10), st.floats(0, 2), st.floats(0.1, 8))
def test_dkd_agrees_with_its_formula(data: Data, temperature: float, alpha: float, beta: float) -> None:
    student, teacher, targets = data
    formula = dkd_formula(teacher.astype(np.float64), targets, temperature)

    def total(x: Any) -> Any:
        tckd, nckd = formula(x)
        return (alpha * tckd + beta * nckd).mean()

    def loss(x: flow.Tensor) -> flow.Tensor:
        tckd, nckd = decoupled(x, flow.tensor(teacher), flow.tensor(targets), temperature)
        return (tckd * alpha + nckd * beta).float()

    assert_agrees(loss, total, student)


@FEW
@given(logits(), st.floats(1, 10))
def test_plain_distillation_is_tckd_plus_the_rest_of_the_probability_times_nckd(
    data: Data, temperature: float
) -> None:
    student, teacher, targets = data
    whole, parts = 0.0, 0.0
    for row in range(len(student)):  # the factor differs from image to image
        z_s, z_t = flow.tensor(student[row : row + 1]), flow.tensor(teacher[row : row + 1])
        tckd, nckd = decoupled(z_s, z_t, flow.tensor(targets[row : row + 1]), temperature)
        p = np.exp(log_softmax(teacher[row : row + 1].astype(np.float64) / temperature))[0, targets[row]]
        parts += tckd.item() + (1 - p) * nckd.item()
        whole += soft_target_loss(z_s, z_t, temperature).item()
    assert parts == pytest.approx(whole, rel=1e-6, abs=1e-6)


def test_dkd_of_two_classes_is_tckd_alone() -> None:
    z_s, z_t = flow.tensor([[2.0, -1.0]]), flow.tensor([[0.5, 1.0]])
    tckd, nckd = decoupled(z_s, z_t, flow.tensor(np.array([1])), 3.0)
    assert nckd.item() == 0
    assert tckd.item() == pytest.approx(soft_target_loss(z_s, z_t, 3.0).item(), rel=1e-6)


def test_dkd_warms_up_in_steps_of_an_epoch() -> None:
    ramp = Dkd(warmup=20).ramp
    assert [ramp(epochs) for epochs in (0.0, 0.99, 1.0, 18.5, 19.0, 40.0)] == [0.05, 0.05, 0.1, 0.95, 1, 1]
    assert Dkd(warmup=0).ramp(0.0) == 1


def pearson(a: Any, b: Any, axis: int) -> Any:
    a, b = (x - x.mean(axis=axis, keepdims=True) for x in (a, b))
    return (a * b).sum(axis) / np.sqrt((a * a).sum(axis) * (b * b).sum(axis) + 1e-16)


@FEW
@given(logits(), st.floats(1, 10))
def test_dist_agrees_with_its_formula(data: Data, temperature: float) -> None:
    student, teacher, _ = data
    q = np.exp(log_softmax(teacher.astype(np.float64) / temperature))

    def formula(z: Any) -> Any:
        p = np.exp(log_softmax(z / temperature))
        return temperature**2 * ((1 - pearson(p, q, 1)).mean() + (1 - pearson(p, q, 0)).mean())

    assert_agrees(lambda x: dist_loss(x, flow.tensor(teacher), temperature), formula, student)


@FEW
@given(st.integers(0, 2**32 - 1), st.floats(0.1, 0.9))
def test_dist_sees_no_difference_in_scale_and_offset_of_probabilities(seed: int, share: float) -> None:
    """Probabilities mixed with even ones are their images under a positive linear map: nothing to learn."""
    random = np.random.default_rng(seed)
    p = np.exp(log_softmax(random.normal(size=(8, 6))))
    mixed = share * p + (1 - share) / 6
    loss = dist_loss(flow.tensor(np.log(mixed).astype(np.float32)), flow.tensor(np.log(p)), 1.0)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    plain = soft_target_loss(flow.tensor(np.log(mixed)), flow.tensor(np.log(p)), 1.0)
    assert plain.item() > 1e-5


def test_dist_of_a_single_image_or_of_equal_logits_has_a_finite_gradient() -> None:
    for images, scale in ((1, 1.0), (4, 0.0)):
        x = flow.tensor(np.full((images, 5), scale, np.float32) * np.arange(5, dtype=np.float32))
        x.requires_grad_()
        dist_loss(x, flow.randn(images, 5), 1.0).backward()
        assert np.isfinite(x.grad.numpy()).all()


@FEW
@given(logits(), st.floats(1, 10))
def test_logit_standardisation_agrees_with_its_formula(data: Data, temperature: float) -> None:
    student, teacher, _ = data

    def standard(z: Any) -> Any:
        z = z - z.mean(axis=1, keepdims=True)
        return z / (np.sqrt((z * z).sum(axis=1, keepdims=True) / (z.shape[1] - 1)) + 1e-7)

    log_t = log_softmax(standard(teacher.astype(np.float64)) / temperature)

    def formula(z: Any) -> Any:
        log_s = log_softmax(standard(z) / temperature)
        return temperature**2 * (np.exp(log_t) * (log_t - log_s)).sum() / len(z)

    def loss(x: flow.Tensor) -> flow.Tensor:
        return soft_target_loss(standardised(x), standardised(flow.tensor(teacher)), temperature)

    assert_agrees(loss, formula, student, tolerance=2e-6)


def test_standardised_logits_do_not_depend_on_scale_and_offset() -> None:
    z = flow.tensor(np.random.default_rng(0).normal(size=(4, 10)))
    np.testing.assert_allclose(standardised(z * 7.0 + 3.0).numpy(), standardised(z).numpy(), atol=1e-6)
    np.testing.assert_array_equal(standardised(flow.ones(2, 10)).numpy(), np.zeros((2, 10)))


def method_on(plugin: Any, student: Floats, teacher: Floats) -> flow.Tensor:
    """The loss of a plugin for given logits: both networks return their inputs."""
    plugin.configure(objective_for(flow.nn.Identity(), flow.nn.Identity()))
    batch = batch_of(teacher)
    x = flow.tensor(student, requires_grad=True)
    loss = plugin.loss(batch, Output(x))
    loss.backward()
    return loss, x.grad


@FEW
@given(logits())
def test_logit_matching_agrees_with_its_formula(data: Data) -> None:
    student, teacher, _ = data
    loss, gradient = method_on(LogitMse(), student, teacher)
    apart = student.astype(np.float64) - teacher
    apart -= apart.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(loss.item(), (apart**2).sum() / (2 * apart.size), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(gradient.numpy(), apart / apart.size, rtol=1e-6, atol=1e-6)


def test_logit_matching_is_what_soft_targets_tend_to_at_high_temperature() -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 5, 10)).astype(np.float32)
    loss, _ = method_on(LogitMse(), student, teacher)
    soft = soft_target_loss(flow.tensor(student), flow.tensor(teacher), 300.0)
    assert soft.item() == pytest.approx(loss.item(), rel=0.02)


@FEW
@given(logits())
def test_hard_labels_agree_with_their_formula(data: Data) -> None:
    student, teacher, _ = data
    rows, classes = np.arange(len(student)), teacher.argmax(axis=1)
    exact = student.astype(np.float64)

    def formula(z: Any) -> Any:
        return -log_softmax(z)[rows, classes].mean()

    loss, gradient = method_on(HardLabels(), student, teacher)
    assert loss.dtype == flow.float32
    np.testing.assert_allclose(loss.item(), formula(exact), rtol=1e-6, atol=1e-5)
    # OneFlow's cross-entropy of float32 logits has gradients to about 1e-4 of a probability.
    np.testing.assert_allclose(gradient.numpy(), gradient_of(formula, exact), rtol=2e-4, atol=1e-6)


def test_hard_labels_and_labels_share_the_weight_as_in_the_paper_without_temperature() -> None:
    """(1 - alpha) CE(labels) + alpha CE(teacher's classes), section 4 of DeiT, has alpha 1/2."""
    flow.manual_seed(0)
    student, teacher = Convolutional(2), Convolutional(4)
    objective = HardLabels().configure(objective_for(student, teacher, alpha=0.5))
    assert {name: term.weight for name, term in objective.terms.items()} == {"task": 0.5, "hard_labels": 0.5}
    batch = batch_of(images_of())
    output = objective.student(batch.inputs)
    log_p = log_softmax(output.logits.numpy().astype(np.float64))
    classes, rows = teacher(batch.inputs).numpy().argmax(axis=1), np.arange(len(log_p))
    assert (classes != batch.targets.numpy()).any(), "the teacher is wrong somewhere"
    expected = -(log_p[rows, batch.targets.numpy()] + log_p[rows, classes]).mean() / 2
    total = objective(batch, output)["total"]
    assert total.item() == pytest.approx(expected, rel=1e-5)
    total.backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())


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


METHODS: dict[str, tuple[LogitMethod, float]] = {
    **{"dkd": (Dkd(warmup=0), 0.9), "dist": (Dist(weight=2.0), 1.8)},
    **{"logit_std": (LogitStd(weight=10.0), 9.0), "logit_mse": (LogitMse(), 0.9), "nkd": (Nkd(), 0.9)},
    **{"wttm": (Wttm(), 3.6), "wsld": (Wsld(), 2.025), "norm_kd": (NormKd(), 0.9)},
}


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_the_place_and_the_weight_of_the_soft_targets(name: str) -> None:
    plugin, weight = METHODS[name]
    flow.manual_seed(0)  # a class of nearly constant probability would cost DIST a few 1e-6
    student, teacher = Convolutional(2), Convolutional(4)
    objective = plugin.configure(objective_for(student, teacher))
    assert list(objective.terms) == ["task", name]
    given_weight = objective.terms[name].weight
    assert (given_weight(3.0) if callable(given_weight) else given_weight) == pytest.approx(weight)
    batch = batch_of(images_of())
    losses = objective(batch, objective.student(batch.inputs))
    expected = 0.1 * losses["task"].item() + weight * losses[name].item()
    assert losses["total"].item() == pytest.approx(expected, rel=1e-5)
    if name in ("nkd", "wttm"):
        return  # the one is a cross-entropy, and the other's student has no temperature
    same = plugin.configure(objective_for(teacher, teacher))
    agreeing = same(batch, Output(teacher(batch.inputs)))
    assert agreeing[name].item() == pytest.approx(0, abs=1e-6), "a student like its teacher has no loss"
