"""Regularisation: dropout rates, a limit for the length of weights, and smoothed labels."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kdtrain import BatchEnd, Callback, DistillationCallback, Dropout, Objective, Run, Trainer, UsageError
from kdtrain.data.loader import Batch, Loader
from kdtrain.engine.losses import cross_entropy
from kdtrain.engine.recorder import Output, Recorder
from kdtrain.models.registry import build_model
from kdtrain.runtime import flow
from kdtrain.store.checkpoint import snapshot
from plugins.dropout import DropoutRates
from plugins.label_smoothing import LabelSmoothing
from plugins.max_norm import MaxNorm
from tests.conftest import ADAM, Fit
from tests.engine.fits import mlp
from tests.plugins.reference import Array, log_softmax


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


def test_a_network_without_dropout_is_refused() -> None:
    with pytest.raises(UsageError, match="--plugin dropout: the network has no dropout layer"):
        configure(DropoutRates(), mlp())


class LongestRow(Callback):
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
def test_every_step_ends_within_the_limit_whoever_looks_first(fit: Fit, first: bool) -> None:
    witness, max_norm = LongestRow(), MaxNorm(0.5)
    fit(*([witness, max_norm] if first else [max_norm, witness]))
    assert len(witness.longest) == 4
    assert max(witness.longest) == pytest.approx(0.5, abs=1e-6), "some unit is at the limit, none above"


def labelled(targets: npt.NDArray[np.int64]) -> Batch:
    return Batch(flow.zeros(len(targets), 1), flow.tensor(targets), flow.tensor(np.arange(len(targets))))


def smoothed(logits: Array, targets: npt.NDArray[np.int64], epsilon: float) -> tuple[float, Array]:
    """The mean of -sum(q log p) over the images, and its gradient, in float64."""
    number, classes = logits.shape
    q = np.full((number, classes), epsilon / (classes - 1))
    q[np.arange(number), targets] = 1.0 - epsilon
    log_p = log_softmax(logits)
    return float(-(q * log_p).sum(axis=1).mean()), (np.exp(log_p) - q) / number


@settings(max_examples=100, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    images=st.integers(1, 40),
    classes=st.integers(2, 100),
    scale=st.sampled_from([0.0, 1e-3, 1.0, 10.0, 100.0]),
    epsilon=st.floats(0, 1, exclude_max=True),
)
def test_loss_and_gradient_equal_an_independent_formula(
    seed: int, images: int, classes: int, scale: float, epsilon: float
) -> None:
    random = np.random.default_rng(seed)
    logits = (random.uniform(-1, 1, (images, classes)) * scale).astype(np.float32)
    targets = random.integers(0, classes, images)
    inputs = flow.tensor(logits, requires_grad=True)
    loss = LabelSmoothing(epsilon).smoothed_cross_entropy(labelled(targets), Output(inputs))
    loss.backward()
    value, gradient = smoothed(logits.astype(np.float64), targets, epsilon)
    assert loss.dtype == flow.float32
    assert abs(loss.item() - value) <= 1e-6 * max(1.0, value)
    np.testing.assert_allclose(inputs.grad.numpy(), gradient, rtol=0, atol=1e-6)


def test_no_smoothing_is_plain_cross_entropy() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(64, 10)).astype(np.float32)
    batch = labelled(random.integers(0, 10, 64))
    results = []
    for term in (LabelSmoothing(0.0).smoothed_cross_entropy, cross_entropy):
        inputs = flow.tensor(logits, requires_grad=True)
        loss = term(batch, Output(inputs))
        loss.backward()
        results.append((loss.item(), inputs.grad.numpy().copy()))
    assert results[0][0] == pytest.approx(results[1][0], abs=2e-6)  # OneFlow's own is that exact
    np.testing.assert_allclose(results[0][1], results[1][1], rtol=0, atol=1e-7)


def test_it_takes_the_place_and_the_weight_of_the_task() -> None:
    smoothing = LabelSmoothing(0.1)
    before = Objective.task().add("extra", cross_entropy, 2.0)
    after = smoothing.configure(before)
    assert list(after.terms) == ["task", "extra"]
    assert [term.weight for term in after.terms.values()] == [1.0, 2.0]
    assert after.terms["task"].term == smoothing.smoothed_cross_entropy
    assert before.terms["task"].term is cross_entropy


def test_order_with_distillation_does_not_matter(tmp_path: Path, train: Loader, validation: Loader) -> None:
    teacher = mlp(7)

    def fit(name: str, epsilon: float, smoothing_first: bool) -> dict[str, bytes]:
        student = mlp()
        callbacks: list[Callback] = [
            LabelSmoothing(epsilon),
            DistillationCallback(teacher, 4.0, 0.5, cache_directory=tmp_path / "cache"),
        ]
        trainer = Trainer(
            student, partial(flow.optim.SGD, lr=0.1), callbacks if smoothing_first else callbacks[::-1]
        )
        trainer.fit(train, validation, epochs=1, directory=tmp_path / name)
        return {name: array.tobytes() for name, array in snapshot(student).items()}

    first, last = fit("first", 0.2, True), fit("last", 0.2, False)
    assert first == last
    assert first != fit("other", 0.0, True), "smoothing makes a difference under distillation, too"
