"""Max-norm: no unit's weights are longer than the limit after any step."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain import BatchEnd, Callback, Loader, Objective, Recorder, Run, Trainer, UsageError, flow
from kdtrain.store.checkpoint import snapshot
from plugins.max_norm import MaxNorm
from tests.conftest import ADAM

Array = npt.NDArray[np.float64]


class Witness(Callback):
    """Notes the length of the longest row of weights after each step."""

    def __init__(self) -> None:
        self.longest: list[float] = []

    def on_batch(self, run: Run, event: BatchEnd) -> None:
        weights = [array for array in snapshot(run.model).values() if array.ndim > 1]
        self.longest.append(max(float(np.linalg.norm(array, axis=1).max()) for array in weights))


def shortened(weight: Array, limit: float) -> Array:
    """Each unit's weights, scaled down to the limit where they are longer: in float64."""
    result = weight.copy()
    for unit, row in enumerate(weight):
        result[unit] = row / max(1.0, np.sqrt((row**2).sum()) / limit)
    return result


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([1e-3, 1.0, 1e3]), limit=st.floats(0.01, 10))
def test_weights_equal_an_independent_formula(seed: int, scale: float, limit: float) -> None:
    network = flow.nn.Sequential(flow.nn.Conv2d(2, 3, 3), flow.nn.Flatten(), flow.nn.Linear(3, 5))
    random = np.random.default_rng(seed)
    for parameter in network.parameters():
        values = random.normal(size=tuple(parameter.shape)) * scale
        values[0] = 0
        parameter.data.copy_(values.astype(np.float32))
    before = {name: array.astype(np.float64) for name, array in snapshot(network).items()}
    objective = MaxNorm(limit).configure(Objective.task().with_student(Recorder(network, "student")))
    with flow.no_grad():
        for constraint in objective.constraints:
            constraint()
    for name, array in snapshot(network).items():
        expected = shortened(before[name], limit) if name.endswith("weight") else before[name]
        np.testing.assert_allclose(array.astype(np.float64), expected, rtol=2e-6)


@pytest.mark.parametrize("first", [True, False])
def test_every_step_ends_within_the_limit_whoever_looks_first(
    student: flow.nn.Module, train: Loader, validation: Loader, tmp_path: Path, first: bool
) -> None:
    witness, max_norm = Witness(), MaxNorm(0.5)
    callbacks = [witness, max_norm] if first else [max_norm, witness]
    Trainer(student, ADAM, callbacks).fit(train, validation, epochs=1, directory=tmp_path)
    assert len(witness.longest) == len(train)
    assert max(witness.longest) == pytest.approx(0.5, abs=1e-6), "some unit is at the limit, none above"


@pytest.mark.parametrize("limit", [0.0, -1.0, float("inf"), float("nan")])
def test_limit_must_be_a_length(limit: float) -> None:
    with pytest.raises(UsageError, match=r"limit=.*: it must be above 0, and finite"):
        MaxNorm(limit)
