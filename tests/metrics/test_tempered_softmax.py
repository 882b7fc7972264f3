"""The softmax with a temperature against its formula, written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdtrain import KdtrainError
from kdtrain.metrics.tempered_softmax import tempered_softmax


@given(st.lists(st.floats(-1e4, 1e4), min_size=2, max_size=100), st.floats(0.01, 1e3))
def test_probabilities_are_finite_and_sum_to_one(logits: list[float], temperature: float) -> None:
    probabilities = tempered_softmax(logits, temperature)
    assert probabilities.dtype == np.float64
    assert np.isfinite(probabilities).all()
    assert (probabilities >= 0).all()
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-12)


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=20), st.floats(0.5, 20))
def test_probabilities_are_the_formula(logits: list[float], temperature: float) -> None:
    exponentials = [math.exp(z / temperature) for z in logits]
    expected = [value / sum(exponentials) for value in exponentials]
    assert tempered_softmax(logits, temperature).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf])
def test_temperature_must_be_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature"):
        tempered_softmax([1.0, 2.0], temperature)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(KdtrainError, match="finite"):
        tempered_softmax([bad, 0.0], 1.0)
