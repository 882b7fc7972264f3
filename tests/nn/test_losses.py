"""Losses as nodes: values and gradients are those of formulas in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain.nn.losses import CrossEntropy, SoftTargetLoss, WeightedSum, scalar
from kdtrain.runtime import flow

Array = npt.NDArray[Any]


def log_softmax(x: Array) -> Array:
    logarithms: Array = x - np.logaddexp.reduce(x, axis=1, keepdims=True)
    return logarithms


def logits_of(images: int, classes: int, size: float, seed: int) -> Array:
    return np.random.default_rng(seed).normal(size=(images, classes), scale=size).astype(np.float32)


def value_and_gradient(node: Any, logits: Array, factor: float = 1.0) -> tuple[float, Array]:
    x = flow.tensor(logits, requires_grad=True)
    loss = node.apply(x)
    assert (tuple(loss.shape), loss.dtype) == ((), flow.float32)
    (loss * factor).backward()
    return loss.item(), x.grad.numpy()


sizes = st.tuples(st.integers(1, 40), st.integers(1, 30), st.floats(0.01, 100), st.integers(0, 9))


@given(sizes)
def test_cross_entropy_agrees_with_float64(size: tuple[int, int, float, int]) -> None:
    images, classes, _, seed = size
    logits = logits_of(*size)
    labels = np.random.default_rng(seed).integers(0, classes, images)
    value, gradient = value_and_gradient(CrossEntropy(flow.tensor(labels)), logits, factor=3.0)
    logarithms, rows = log_softmax(logits.astype(np.float64)), np.arange(images)
    assert value == pytest.approx(-logarithms[rows, labels].mean(), rel=1e-5, abs=1e-6)
    expected = np.exp(logarithms)
    expected[rows, labels] -= 1
    np.testing.assert_allclose(gradient, 3.0 * expected / images, rtol=1e-4, atol=1e-6)


@given(sizes, st.booleans(), st.booleans())
def test_cross_entropy_of_mixed_images_and_of_images_without_labels_agrees_with_float64(
    size: tuple[int, int, float, int], some_without: bool, some_mixed: bool
) -> None:
    images, classes, _, seed = size
    random, logits = np.random.default_rng(seed), logits_of(*size)
    first, second = random.integers(0, classes, (2, images))
    share = random.uniform(0.5, 1, images).astype(np.float32) if some_mixed else np.ones(images, np.float32)
    labelled = random.random(images) < 0.5 if some_without else np.ones(images, bool)
    count = 1.5 + labelled.sum() if some_without else images
    node = CrossEntropy(
        flow.tensor(first),
        flow.tensor(labelled) if some_without else None,
        count if some_without else None,
        (flow.tensor(second), flow.tensor(share)) if some_mixed else None,
    )
    value, gradient = value_and_gradient(node, logits, factor=3.0)
    logarithms, rows = log_softmax(logits.astype(np.float64)), np.arange(images)
    weights = np.zeros((images, classes))
    np.add.at(weights, (rows, first), labelled * share / count)
    np.add.at(weights, (rows, second), labelled * (1 - share) / count)
    assert value == pytest.approx(-(weights * logarithms).sum(), rel=1e-5, abs=1e-6)
    expected = weights.sum(axis=1, keepdims=True) * np.exp(logarithms) - weights
    np.testing.assert_allclose(gradient, 3.0 * expected, rtol=1e-4, atol=1e-6)


@given(sizes, st.sampled_from([0.5, 1.0, 4.0, 20.0]))
def test_soft_targets_agree_with_float64(size: tuple[int, int, float, int], temperature: float) -> None:
    student, teacher = logits_of(*size), logits_of(*size[:3], size[3] + 1)
    value, gradient = value_and_gradient(SoftTargetLoss(flow.tensor(teacher), temperature), student, 0.5)
    log_s, log_t = (log_softmax(each.astype(np.float64) / temperature) for each in (student, teacher))
    divergence = (np.exp(log_t) * (log_t - log_s)).sum() / size[0]
    assert value == pytest.approx(temperature**2 * divergence, rel=1e-6, abs=1e-9)
    expected = 0.5 * temperature * (np.exp(log_s) - np.exp(log_t)) / size[0]
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-7)


def test_logits_that_overflow_alone_have_a_finite_loss() -> None:
    logits = np.array([[1e30, -1e30], [3e38, 0.0]], np.float32)
    value, gradient = value_and_gradient(CrossEntropy(flow.tensor([0, 0])), logits)
    assert (value, np.abs(gradient).max()) == (0.0, 0.0)


def test_a_sum_has_each_factor_in_value_and_gradient() -> None:
    losses = [flow.tensor(number, requires_grad=True) for number in (0.5, 2.0, 3.0)]
    total = WeightedSum([0.1, 1.0, 0.25]).apply(*losses)
    (total * 2.0).backward()
    assert total.item() == pytest.approx(0.05 + 2.0 + 0.75)
    assert [loss.grad.item() for loss in losses] == pytest.approx([0.2, 2.0, 0.5])


def test_a_scalar_shares_no_memory_with_the_number_that_it_is_made_of() -> None:
    number = np.ones((), np.float32)
    copy, shared = scalar(number), flow.from_numpy(number)
    assert copy.item() == 1.0  # OneFlow makes the copy at the latest when it is read
    number[...] = 2.0
    assert (copy.numpy(), shared.numpy()) == (1.0, 2.0)
