"""The calibration error against its definition, bin by bin."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain import reliability


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 50), st.integers(2, 6), st.integers(1, 20))
def test_calibration_error_is_that_of_the_definition(seed: int, images: int, classes: int, bins: int) -> None:
    random = np.random.default_rng(seed)
    logits = random.normal(size=(images, classes)) * 3
    targets = random.integers(0, classes, images)
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
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
