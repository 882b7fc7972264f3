"""The distillation loss against an independent formula in float64."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from kdtrain import flow, soft_target_loss

Array = npt.NDArray[np.float64]


def _softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def _log_softmax(z: Array) -> Array:
    z = z - z.max(axis=1, keepdims=True)
    return np.asarray(z - np.log(np.exp(z).sum(axis=1, keepdims=True)))


def reference(student: Array, teacher: Array, temperature: float) -> tuple[float, Array]:
    """Value and gradient with respect to the student's logits, in closed form."""
    p, log_p, log_q = (
        _softmax(teacher / temperature),
        _log_softmax(teacher / temperature),
        _log_softmax(student / temperature),
    )
    value = temperature**2 * (p * (log_p - log_q)).sum() / len(student)
    gradient = temperature * (np.exp(log_q) - p) / len(student)
    return float(value), gradient


@st.composite
def logit_pairs(draw: st.DrawFn) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    shape = (draw(st.integers(1, 8)), draw(st.integers(2, 100)))
    logits = arrays(np.float32, shape, elements=st.floats(-100, 100, width=32))
    return draw(logits), draw(logits)


@settings(max_examples=150, deadline=None)
@given(logit_pairs(), st.floats(1, 20), st.floats(0, 1))
def test_value_and_gradient_agree_with_float64(
    pair: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], temperature: float, alpha: float
) -> None:
    student = flow.tensor(pair[0], requires_grad=True)
    teacher = flow.tensor(pair[1], requires_grad=True)
    loss = soft_target_loss(student, teacher, temperature)
    (loss * alpha).backward()
    value, gradient = reference(pair[0].astype(np.float64), pair[1].astype(np.float64), temperature)
    np.testing.assert_allclose(loss.item(), value, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(student.grad.numpy(), alpha * gradient, rtol=1e-6, atol=1e-6)
    assert teacher.grad is None


@settings(max_examples=50, deadline=None)
@given(logit_pairs(), st.floats(1, 20))
def test_a_student_equal_to_its_teacher_has_loss_0(
    pair: tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]], temperature: float
) -> None:
    assert soft_target_loss(flow.tensor(pair[0]), flow.tensor(pair[0]), temperature).item() == 0.0


def test_the_mean_is_over_images_and_not_over_classes() -> None:
    student = np.array([[2.0, 0.0, -1.0]], dtype=np.float32)
    teacher = np.array([[0.0, 1.0, 0.0]], dtype=np.float32)
    single = soft_target_loss(flow.tensor(student), flow.tensor(teacher), 3.0).item()
    twice = soft_target_loss(flow.tensor(student.repeat(2, 0)), flow.tensor(teacher.repeat(2, 0)), 3.0).item()
    assert twice == pytest.approx(single, rel=1e-7)
    assert single == pytest.approx(reference(student.astype(float), teacher.astype(float), 3.0)[0], rel=1e-6)


def test_the_factor_t_squared_keeps_the_size_of_the_gradient() -> None:
    """At high T the gradient tends to (student - teacher) / classes, whatever T is (Hinton 2015, eq. 4)."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(4, 10)), rng.normal(size=(4, 10))
    student -= student.mean(axis=1, keepdims=True)
    teacher -= teacher.mean(axis=1, keepdims=True)
    logits = flow.tensor(student.astype(np.float32), requires_grad=True)
    soft_target_loss(logits, flow.tensor(teacher.astype(np.float32)), 200.0).backward()
    np.testing.assert_allclose(logits.grad.numpy(), (student - teacher) / 10 / 4, atol=2e-3)
