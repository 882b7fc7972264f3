"""Formulas in float64 with exact gradients, and small networks, for the tests of the methods."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from hypothesis import settings
from hypothesis import strategies as st

from kdtrain import Batch, DistillationCallback, Objective, Recorder, flow

Array = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Formula = Callable[[Any], Any]
Data = tuple[Floats, Floats, Any]

SCALES = st.sampled_from([1e-2, 1.0, 10.0, 50.0])
FEW = settings(max_examples=40, deadline=None)


@st.composite
def logits(draw: st.DrawFn) -> Data:
    """Student's and teacher's logits, and labels."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(2, 7)), draw(st.integers(2, 12)))
    student, teacher = ((random.uniform(-1, 1, shape) * draw(SCALES)).astype(np.float32) for _ in range(2))
    return student, teacher, random.integers(0, shape[1], shape[0])


def normal(seed: int, *shape: int) -> Floats:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def gradient_of(formula: Formula, x: Array) -> Array:
    """The gradient of an analytic formula, to the last digits: its slope along the imaginary axis."""
    gradient = np.empty(x.shape)
    for index in np.ndindex(*x.shape):
        moved = x.astype(np.complex128)
        moved[index] += 1e-30j
        gradient[index] = formula(moved).imag / 1e-30
    return gradient


def log_softmax(z: Any) -> Any:
    """Row by row, also of complex numbers."""
    z = z - z.real.max(axis=1, keepdims=True)
    return z - np.log(np.exp(z).sum(axis=1, keepdims=True))


def soft_target_formula(teacher: Array, temperature: float) -> Formula:
    """Hinton et al. 2015, section 2: T^2 times the divergence of the softened distributions."""
    log_p = log_softmax(teacher / temperature)

    def formula(student: Any) -> Any:
        log_q = log_softmax(student / temperature)
        return temperature**2 * (np.exp(log_p) * (log_p - log_q)).sum() / len(student)

    return formula


def huber(x: Any) -> Any:
    return np.where(np.abs(x.real) <= 1, x * x / 2, x * np.sign(x.real) - 0.5)


def assert_agrees(
    loss: Callable[[flow.Tensor], flow.Tensor], formula: Formula, student: Floats, tolerance: float = 1e-6
) -> None:
    """Asserts that value and gradient of a loss at ``student`` are those of the formula."""
    x = flow.tensor(student, requires_grad=True)
    value = loss(x)
    value.backward()
    exact = student.astype(np.float64)
    assert value.dtype == flow.float32
    np.testing.assert_allclose(value.item(), formula(exact).real, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(x.grad.numpy(), gradient_of(formula, exact), rtol=tolerance, atol=tolerance)


def batch_of(images: Floats, seed: int = 0, classes: int = 3) -> Batch:
    targets = np.random.default_rng(seed).integers(0, classes, len(images))
    return Batch(flow.tensor(images), flow.tensor(targets), flow.tensor(np.arange(len(images))))


class Convolutional(flow.nn.Module):
    """Two convolutions, two fully connected layers, and a layer that is never used."""

    def __init__(self, channels: int, hidden: int = 5, classes: int = 3) -> None:
        super().__init__()
        self.conv1 = flow.nn.Conv2d(1, channels, 3)
        self.conv2 = flow.nn.Conv2d(channels, channels, 3)
        self.fc1 = flow.nn.Linear(channels * 16, hidden)
        self.fc2 = flow.nn.Linear(hidden, classes)
        self.unused = flow.nn.Linear(1, 1)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns logits of 8 x 8 pixels."""
        x = flow.nn.functional.relu(self.conv2(flow.nn.functional.relu(self.conv1(x))))
        return self.fc2(flow.nn.functional.relu(self.fc1(flow.flatten(x, 1))))


def images_of(seed: int = 0, count: int = 6) -> Floats:
    return np.random.default_rng(seed).normal(size=(count, 1, 8, 8)).astype(np.float32)


def objective_for(student: flow.nn.Module, teacher: flow.nn.Module, alpha: float = 0.9) -> Objective:
    """The objective that a plugin's ``configure`` receives in mode student_kd."""
    images = flow.tensor(images_of(count=1))
    objective = Objective.task().with_student(Recorder(student, "student", images))
    return DistillationCallback(teacher, 4.0, alpha).configure(objective)
