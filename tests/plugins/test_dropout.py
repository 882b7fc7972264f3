"""Dropout rates: a fit trains with the given rates, and nothing else is changed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain import Dropout, Loader, Objective, Recorder, Trainer, UsageError, build_model, flow
from plugins.dropout import DropoutRates
from tests.conftest import ADAM


def rates(network: flow.nn.Module) -> list[float]:
    return [layer.p for layer in network.modules() if isinstance(layer, Dropout)]


def configure(plugin: DropoutRates, network: flow.nn.Module) -> None:
    objective = Objective.task().with_student(Recorder(network, "student"))
    assert plugin.configure(objective) is objective


@pytest.mark.parametrize(
    ("arch", "expected"), [("hinton_1200", [0.1, 0.3, 0.3]), ("teacher_cnn", [0.3, 0.3])]
)
def test_pixels_and_hidden_units_have_rates_of_their_own(arch: str, expected: list[float]) -> None:
    network = build_model(arch, (1, 28, 28), 10)
    configure(DropoutRates(hidden=0.3, inputs=0.1), network)
    assert rates(network) == expected


@settings(max_examples=20, deadline=None)
@given(hidden=st.floats(0.0, 0.95), inputs=st.floats(0.0, 0.95), seed=st.integers(0, 2**31 - 1))
def test_that_fraction_is_dropped_in_training_and_nothing_at_evaluation(
    hidden: float, inputs: float, seed: int
) -> None:
    network = flow.nn.Sequential(Dropout(0.5), flow.nn.Linear(1, 1), Dropout(0.5))
    configure(DropoutRates(hidden, inputs), network)
    units = 20_000
    flow.manual_seed(seed)
    for layer, rate in ((network[0], inputs), (network[2], hidden)):
        dropped = float((layer.train()(flow.ones(units)).numpy() == 0).mean())
        assert dropped == pytest.approx(rate, abs=6 * np.sqrt(rate * (1 - rate) / units) + 1e-9)
        np.testing.assert_array_equal(layer.eval()(flow.ones(5)).numpy(), np.ones(5))


def test_a_fit_has_the_rates_from_its_first_step(train: Loader, validation: Loader, tmp_path: Path) -> None:
    """Without dropout, training twice from the same weights takes the same way, whatever is drawn."""
    weights = []
    for seed in (1, 2):
        flow.manual_seed(0)
        network = build_model("hinton_1200", (1, 28, 28), 10)
        flow.manual_seed(seed)
        plugin = DropoutRates(hidden=0.0, inputs=0.0)
        Trainer(network, ADAM, [plugin]).fit(train, validation, epochs=1, directory=tmp_path / str(seed))
        weights.append(network.fc3.weight.numpy().copy())
    np.testing.assert_array_equal(*weights)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
@pytest.mark.parametrize("name", ["hidden", "inputs"])
def test_a_rate_must_be_a_fraction(name: str, rate: float) -> None:
    with pytest.raises(UsageError, match=re.escape(f"{name}={rate}: it must be from 0 to below 1.")):
        DropoutRates(**{name: rate})


def test_a_network_without_dropout_is_refused() -> None:
    with pytest.raises(UsageError, match="--plugin dropout: the network has no dropout layer"):
        configure(DropoutRates(), build_model("student_mlp", (1, 28, 28), 10))
