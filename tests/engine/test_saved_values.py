"""The first step of a fit names a layer whose gradient would be wrong: a value that it keeps is changed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kdtrain import Loader, Trainer, flow
from kdtrain.engine.saved_values import SavedValues
from kdtrain.errors import KdtrainError
from kdtrain.nn.own_layers import with_own_layers
from kdtrain.store.checkpoint import snapshot
from tests.conftest import ADAM

nn, F = flow.nn, flow.nn.functional


class Net(flow.nn.Module):
    """A network of a user's, one of whose layers is used in a given way."""

    def __init__(self, use: Callable[[Any, flow.Tensor], flow.Tensor], layer: flow.nn.Module) -> None:
        super().__init__()
        self.use = use
        self.stem = nn.Conv2d(1, 4, 3, stride=3)
        self.block = nn.ModuleList([nn.Identity(), layer])
        self.fc = nn.Linear(4 * 81, 10)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        return self.fc(flow.flatten(self.use(self.block[1], self.stem(x)), 1))


def changes_result(layer: Any, x: flow.Tensor) -> flow.Tensor:
    """The form of a residual block that is wrong."""
    y = layer(x)
    y += x
    return y


def changes_argument(layer: Any, x: flow.Tensor) -> flow.Tensor:
    """Another such form."""
    x += layer(x)
    return x


def changes_memory(layer: Any, x: flow.Tensor) -> flow.Tensor:
    y = layer(x)
    y.numpy()[...] = 0.25
    return y


def is_right(layer: Any, x: flow.Tensor) -> flow.Tensor:
    return layer(x) + x


def first_epoch(model: flow.nn.Module, train: Loader, validation: Loader, directory: Any) -> flow.nn.Module:
    Trainer(with_own_layers(model), ADAM).fit(train, validation, epochs=1, directory=directory)
    return model


@pytest.mark.parametrize(
    "layer", [nn.ReLU6(), nn.Hardtanh(), nn.Sigmoid(), nn.Softmax(1), nn.LogSoftmax(1), nn.Softshrink()]
)
@pytest.mark.parametrize("use", [changes_result, changes_memory])
def test_a_layer_of_oneflows_whose_result_is_changed_is_named(
    use: Any, layer: flow.nn.Module, train: Loader, validation: Loader, tmp_path: Any
) -> None:
    with pytest.raises(KdtrainError) as caught:
        first_epoch(Net(use, layer), train, validation, tmp_path)
    text = str(caught.value)
    assert f"layer 'block.1' ({type(layer).__name__})" in text
    assert "test_saved_values.py line " in text
    assert "write `y = y + z` instead of `y += z`" in text
    assert "\n" not in text


@pytest.mark.parametrize("layer", [nn.Conv2d(4, 4, 3, padding=1), nn.Hardswish(), nn.LeakyReLU(), nn.Tanh()])
def test_a_layer_whose_argument_is_changed_is_named(
    layer: flow.nn.Module, train: Loader, validation: Loader, tmp_path: Any
) -> None:
    with pytest.raises(KdtrainError, match=r"layer 'block\.1' \("):
        first_epoch(Net(changes_argument, layer), train, validation, tmp_path)


def test_a_function_is_named_by_its_line(train: Loader, validation: Loader, tmp_path: Any) -> None:
    def use(layer: Any, x: flow.Tensor) -> flow.Tensor:
        y = flow.sigmoid(x)
        y += x
        return y

    line = use.__code__.co_firstlineno + 1
    with pytest.raises(KdtrainError, match=rf"test_saved_values\.py line {line}"):
        first_epoch(Net(use, nn.Identity()), train, validation, tmp_path)


def test_changes_of_what_no_gradient_needs_are_no_error(
    train: Loader, validation: Loader, tmp_path: Any
) -> None:
    """Also where OneFlow keeps a tensor for its shape only."""

    def use(layer: Any, x: flow.Tensor) -> flow.Tensor:
        y = layer(x)
        y += x
        z = flow.cat([y, x], 1) + flow.ones(1, 8, 1, 1)
        y += 1
        z -= y.mean()
        return (z[:, :4] + z[:, 4:]) * 0.5

    for layer in (nn.Conv2d(4, 4, 1), nn.ReLU(), nn.BatchNorm2d(4), nn.LeakyReLU(), nn.MaxPool2d(3, 1, 1)):
        first_epoch(Net(use, layer), train, validation, tmp_path)


@pytest.mark.parametrize("layer", [nn.Sigmoid(), nn.ReLU()])
def test_the_check_changes_no_bit(
    layer: flow.nn.Module,
    train: Loader,
    validation: Loader,
    tmp_path: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = []
    for checked in (True, False):
        if not checked:
            monkeypatch.setattr(SavedValues, "__enter__", lambda self: self)
            monkeypatch.setattr(SavedValues, "__exit__", lambda self, *_: None)
        flow.manual_seed(0)
        weights.append(snapshot(first_epoch(Net(is_right, layer), train, validation, tmp_path)))
    for name, values in weights[0].items():
        np.testing.assert_array_equal(values, weights[1][name])


def test_the_check_keeps_no_memory() -> None:
    """OneFlow itself does not free what hooks on kept tensors return."""
    leaf = flow.ones(1 << 20, requires_grad=True)
    optimizer, megabytes = flow.optim.SGD([leaf], lr=0.1), []
    for _ in range(30):
        with SavedValues() as saved:
            loss = flow.sigmoid(flow.tanh(leaf * 2)).sum()
            saved.check(loss, optimizer)
            loss.backward()
        optimizer.zero_grad(set_to_none=True)
        megabytes.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4 / 1024)
    assert megabytes[-1] - megabytes[9] < 40  # 20 steps of 12 MB
