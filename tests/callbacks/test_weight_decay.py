"""Decoupled weight decay against its formula, step by step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain import (
    Batch,
    Callback,
    LearningRateSchedule,
    Loader,
    Objective,
    Output,
    Trainer,
    UsageError,
    WeightDecay,
    build_model,
    flow,
)
from kdtrain.callbacks.schedule import learning_rate
from kdtrain.engine.objective import WeightedTerm
from kdtrain.store.checkpoint import snapshot
from tests.engine.fits import Notes, mlp

OPTIMIZERS = {
    "adam": partial(flow.optim.Adam, lr=0.1),
    "adadelta": partial(flow.optim.Adadelta, lr=0.1),
    "sgd": partial(flow.optim.SGD, lr=0.1, momentum=0.9),
}


def flat(batch: Batch, output: Output) -> flow.Tensor:
    """A loss without slope: no optimizer moves a weight."""
    return output.logits.sum() * 0.0


FLAT = Objective({"task": WeightedTerm(flat, 1.0)})


def weights_of(network: flow.nn.Module) -> dict[str, Any]:
    """The parameters in float64."""
    return {name: parameter.numpy().astype(np.float64) for name, parameter in network.named_parameters()}


@pytest.mark.parametrize("schedule_first", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_weights_shrink_by_the_rate_of_each_step_and_biases_stay(
    name: str, schedule_first: bool, train: Loader, validation: Loader, tmp_path: Path
) -> None:
    flow.manual_seed(0)
    network = build_model("resnet8", (1, 28, 28), 10)
    callbacks: list[Callback] = [LearningRateSchedule("one_cycle", 0.1), WeightDecay(0.5)]
    trainer = Trainer(
        network, OPTIMIZERS[name], callbacks if schedule_first else callbacks[::-1], objective=FLAT
    )
    before = weights_of(network)
    trainer.fit(train, validation, epochs=1, directory=tmp_path)
    rest = math.prod(1 - learning_rate("one_cycle", 0.1, step, 4) * 0.5 for step in range(4))
    assert rest < 0.95
    for weight, array in weights_of(network).items():
        expected = before[weight] * (rest if array.ndim > 1 else 1.0)
        np.testing.assert_allclose(array, expected, rtol=1e-6, err_msg=weight)


def test_it_comes_after_the_step_of_the_optimizer(train: Loader, validation: Loader, tmp_path: Path) -> None:
    network, by_hand = mlp(), mlp()
    make = partial(flow.optim.SGD, lr=0.1)
    Trainer(network, make, [WeightDecay(0.3)]).fit(train, validation, epochs=1, directory=tmp_path)
    optimizer = make(by_hand.parameters())
    for batch in train.epoch(1):
        optimizer.zero_grad()
        flow.nn.functional.cross_entropy(by_hand(batch.inputs), batch.targets).backward()
        optimizer.step()
        for parameter in by_hand.parameters():
            if parameter.ndim > 1:
                parameter.data.copy_((parameter.numpy() * (1 - 0.1 * 0.3)).astype(np.float32))
    expected = snapshot(by_hand)
    for name, array in snapshot(network).items():
        np.testing.assert_allclose(
            array.astype(float), expected[name].astype(float), rtol=1e-5, atol=1e-7, err_msg=name
        )


def test_each_group_of_parameters_has_its_rate(train: Loader, validation: Loader, tmp_path: Path) -> None:
    def two_groups(parameters: Iterable[flow.Tensor]) -> flow.optim.Optimizer:
        first, *others = parameters
        return flow.optim.SGD([{"params": [first], "lr": 0.5}, {"params": others, "lr": 0.1}])

    network = mlp()
    before = weights_of(network)
    Trainer(network, two_groups, [WeightDecay(0.1)], objective=FLAT).fit(
        train, validation, epochs=1, directory=tmp_path
    )
    after = weights_of(network)
    np.testing.assert_allclose(after["fc1.weight"], before["fc1.weight"] * 0.95**4, rtol=1e-6)
    np.testing.assert_allclose(after["fc2.weight"], before["fc2.weight"] * 0.99**4, rtol=1e-6)


def test_a_frozen_layer_stays_and_the_weights_of_a_term_shrink(
    make_loader: Callable[..., Loader], validation: Loader, tmp_path: Path
) -> None:
    class Regressor(flow.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = flow.nn.Linear(10, 3)

        def forward(self, batch: Batch, output: Output) -> flow.Tensor:
            return self.linear(output.logits).sum() * 0.0

    term, network = Regressor(), mlp()
    network.fc1.weight.requires_grad = False
    frozen, before = snapshot(network)["fc1.weight"].copy(), term.linear.weight.numpy().copy()
    trainer = Trainer(network, OPTIMIZERS["sgd"], [WeightDecay(0.5)], objective=FLAT.add("regressor", term))
    trainer.fit(make_loader(128), validation, epochs=1, directory=tmp_path)
    np.testing.assert_array_equal(snapshot(network)["fc1.weight"], frozen)
    np.testing.assert_allclose(term.linear.weight.numpy(), before * 0.95, rtol=1e-6)


def test_other_callbacks_see_the_weights_after_it(train: Loader, validation: Loader, tmp_path: Path) -> None:
    class Norms(Notes):
        def on_batch(self, run: Any, event: Any) -> None:
            norms.append(float(np.linalg.norm(run.model.fc1.weight.numpy())))

    norms: list[float] = []
    network = mlp()
    norm = float(np.linalg.norm(network.fc1.weight.numpy()))
    Trainer(network, OPTIMIZERS["sgd"], [Norms(), WeightDecay(0.5)], objective=FLAT).fit(
        train, validation, epochs=1, directory=tmp_path
    )
    assert norms == pytest.approx([norm * 0.95**step for step in (1, 2, 3, 4)], rel=1e-6)


@pytest.mark.parametrize("decay", [0.0, -0.1, 1.5, math.nan])
def test_an_impossible_decay_is_refused(decay: float) -> None:
    with pytest.raises(UsageError, match=f"weight decay {decay}: it must be above 0 and at most 1"):
        WeightDecay(decay)
