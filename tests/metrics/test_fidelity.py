"""Agreement and divergence against their formulas, written out."""

from __future__ import annotations

import numpy as np
import pytest

from kdtrain import measure_fidelity


def test_fidelity_is_agreement_and_divergence() -> None:
    random = np.random.default_rng(0)
    student, teacher = random.normal(size=(2, 50, 4))
    p = np.exp(teacher) / np.exp(teacher).sum(axis=1, keepdims=True)
    q = np.exp(student) / np.exp(student).sum(axis=1, keepdims=True)
    agreement, divergence = measure_fidelity(student, teacher)
    assert agreement == (p.argmax(axis=1) == q.argmax(axis=1)).mean()
    assert divergence == pytest.approx((p * np.log(p / q)).sum() / 50, rel=1e-12)
    assert measure_fidelity(teacher, teacher + 5) == pytest.approx((1.0, 0.0), abs=1e-12)


def test_logits_far_apart_have_a_finite_divergence() -> None:
    assert measure_fidelity([[0.0, 2000.0]], [[2000.0, 0.0]]) == (0.0, 2000.0)
