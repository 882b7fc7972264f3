"""The distillation loss against an independent formula in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdtrain import flow, soft_target_loss
from tests.plugins.reference import Floats, assert_agrees, soft_target_formula


@st.composite
def logit_pairs(draw: st.DrawFn) -> tuple[Floats, Floats]:
    shape = (draw(st.integers(1, 8)), draw(st.integers(2, 100)))
    logits = arrays(np.float32, shape, elements=st.floats(-100, 100, width=32))
    return draw(logits), draw(logits)


@settings(max_examples=150, deadline=None)
@given(logit_pairs(), st.floats(1, 20))
def test_value_and_gradient_agree_with_float64(pair: tuple[Floats, Floats], temperature: float) -> None:
    teacher = flow.tensor(pair[1], requires_grad=True)
    formula = soft_target_formula(pair[1].astype(np.float64), temperature)
    assert_agrees(lambda student: soft_target_loss(student, teacher, temperature), formula, pair[0])
    assert teacher.grad is None


@settings(max_examples=50, deadline=None)
@given(logit_pairs(), st.floats(1, 20))
def test_a_student_equal_to_its_teacher_has_loss_0(pair: tuple[Floats, Floats], temperature: float) -> None:
    assert soft_target_loss(flow.tensor(pair[0]), flow.tensor(pair[0]), temperature).item() == 0.0


def test_the_mean_is_over_images_and_not_over_classes() -> None:
    student = np.array([[2.0, 0.0, -1.0]], dtype=np.float32)
    teacher = np.array([[0.0, 1.0, 0.0]], dtype=np.float32)
    single = soft_target_loss(flow.tensor(student), flow.tensor(teacher), 3.0).item()
    twice = soft_target_loss(flow.tensor(student.repeat(2, 0)), flow.tensor(teacher.repeat(2, 0)), 3.0).item()
    assert twice == pytest.approx(single, rel=1e-7)
    expected = soft_target_formula(teacher.astype(np.float64), 3.0)(student.astype(np.float64))
    assert single == pytest.approx(expected, rel=1e-6)


def test_the_factor_t_squared_keeps_the_size_of_the_gradient() -> None:
    """At high T the gradient tends to (student - teacher) / classes, whatever T is (Hinton 2015, eq. 4)."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(4, 10)), rng.normal(size=(4, 10))
    student -= student.mean(axis=1, keepdims=True)
    teacher -= teacher.mean(axis=1, keepdims=True)
    logits = flow.tensor(student.astype(np.float32), requires_grad=True)
    soft_target_loss(logits, flow.tensor(teacher.astype(np.float32)), 200.0).backward()
    np.testing.assert_allclose(logits.grad.numpy(), (student - teacher) / 10 / 4, atol=2e-3)
