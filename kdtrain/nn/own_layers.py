"""The replacement of OneFlow's and flowvision's layers by kdtrain's own."""

from __future__ import annotations

import functools
from typing import Any

from kdtrain.nn import layers
from kdtrain.nn.blocks import BLOCKS
from kdtrain.runtime import flow

_OWN: dict[type, type] = {
    flow.nn.Conv2d: layers.Conv2d,
    flow.nn.Linear: layers.Linear,
    flow.nn.BatchNorm1d: layers.BatchNorm1d,
    flow.nn.BatchNorm2d: layers.BatchNorm2d,
    flow.nn.ReLU: layers.ReLU,
    flow.nn.Hardswish: layers.Hardswish,
    flow.nn.MaxPool2d: layers.MaxPool2d,
    flow.nn.AvgPool2d: layers.AvgPool2d,
    flow.nn.AdaptiveAvgPool2d: layers.AdaptiveAvgPool2d,
    flow.nn.Dropout: layers.Dropout,
}
_ELEMENTWISE = {
    *(flow.nn.Identity, flow.nn.ReLU6, flow.nn.LeakyReLU, flow.nn.ELU, flow.nn.SiLU, flow.nn.GELU),
    *(flow.nn.Mish, flow.nn.Sigmoid, flow.nn.Tanh, flow.nn.Hardsigmoid),
}
_LARGE = 1 << 18  # weights of a linear layer that gains by a second core


def with_own_layers(model: flow.nn.Module) -> flow.nn.Module:
    """Replaces the layers of a network that is not kdtrain's by kdtrain's own; parameters and names stay.

    kdtrain's dropout follows the seed, so that a run can be resumed bit for bit. Convolutions and what is
    around them are faster. Batch normalisation raises an error instead of computing NaN. Activations do not
    work in place: some of OneFlow's warn at each call, and it does not detect a gradient that is wrong.
    """
    for layer in model.modules():
        if type(layer).__module__.startswith("oneflow.") and hasattr(layer, "inplace"):
            layer.inplace = False
        layer.__class__ = _own(type(layer))  # type: ignore[arg-type]
    return model


def gains_by_cores(model: flow.nn.Module) -> bool:
    """Returns whether a network is faster on several cores: it has convolutions, or large linear layers."""
    return any(
        isinstance(layer, flow.nn.Conv2d)
        or (isinstance(layer, layers.Linear) and layer.weight.numel() >= _LARGE)
        for layer in model.modules()
    )


@functools.cache
def _own(kind: Any) -> Any:
    """Returns kdtrain's class for a layer's class, which may be the same."""
    own = _OWN.get(kind) or BLOCKS.get(f"{kind.__module__}.{kind.__qualname__}")
    if own is not None:
        return own
    if kind in _ELEMENTWISE:
        return type(kind.__name__, (layers.Elementwise, kind), {})
    if issubclass(kind, flow.nn.Sequential) and kind.forward is flow.nn.Sequential.forward:
        return (
            layers.Sequential
            if kind is flow.nn.Sequential
            else type(kind.__name__, (layers.Sequential, kind), {})
        )
    return kind
