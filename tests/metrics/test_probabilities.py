"""Figures of probabilities against their formulas: softmax with a temperature, calibration, fidelity."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain import KdtrainError, measure_fidelity, reliability
from kdtrain.metrics.probabilities import tempered_softmax


def softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    exponentials = np.exp(logits)
    return np.asarray(exponentials / exponentials.sum(axis=1, keepdims=True))


@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=100), st.floats(0.01, 1e3))
def test_probabilities_are_finite_and_sum_to_one(logits: list[float], temperature: float) -> None:
    probabilities = tempered_softmax(logits, temperature)
    assert probabilities.dtype == np.float64
    assert np.isfinite(probabilities).all()
    assert (probabilities >= 0).all()
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=20), st.floats(0.5, 20))
def test_probabilities_are_the_formula(logits: list[float], temperature: float) -> None:
    (expected,) = softmax(np.array([logits]) / temperature)
    assert tempered_softmax(logits, temperature).tolist() == pytest.approx(expected.tolist(), rel=1e-9)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        tempered_softmax([1.0, 2.0], temperature)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(KdtrainError, match="finite"):
        tempered_softmax([bad, 0.0], 1.0)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(2, 6), st.integers(1, 20))
def test_calibration_error_is_that_of_the_definition(seed: int, images: int, classes: int, bins: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(images, classes)) * 3
    targets = random.integers(0, classes, images)
    p = softmax(logits)
    confidence, right = p.max(axis=1), p.argmax(axis=1) == targets
    error = 0.0
    binned = reliability(logits, targets, bins)
    for m in range(bins):
        inside = (confidence > m / bins) & (confidence <= (m + 1) / bins)
        assert binned.counts[m] == inside.sum()
        if inside.any():
            error += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
            assert binned.accuracy[m] == pytest.approx(right[inside].mean())
            assert binned.confidence[m] == pytest.approx(confidence[inside].mean())
    assert binned.error == pytest.approx(error, abs=1e-12)


def test_error_of_a_certain_network_that_is_right_half_the_time_is_a_half() -> None:
    binned = reliability(np.tile([1000.0, 0.0], (4, 1)), np.array([0, 1, 0, 1]))
    assert (len(binned.counts), binned.error, binned.counts[-1], binned.accuracy[-1]) == (15, 0.5, 4, 0.5)


def test_fidelity_is_agreement_and_divergence() -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 50, 4))
    p, q = softmax(teacher), softmax(student)
    agreement, divergence = measure_fidelity(student, teacher)
    assert agreement == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert divergence == pytest.approx((p * np.log(p / q)).sum() / 50, rel=1e-12)
    assert measure_fidelity(teacher, teacher + 5) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_logits_far_apart_have_a_finite_divergence() -> None:
    assert measure_fidelity([[0.0, 2000.0]], [[2000.0, 0.0]]) == (0.0, 2000.0)
