"""The replacement of OneFlow's and flowvision's layers and blocks by kdtrain's own.

flowvision's own blocks use operations of OneFlow's that are slow on images that are channels last, or in
general. kdtrain's have layers of the same names.
"""

from __future__ import annotations

import functools
from typing import Any

from kdtrain.nn import layers
from kdtrain.runtime import flow


def _activated(relu: flow.nn.Module, layer: flow.nn.Module, x: flow.Tensor) -> flow.Tensor:
    """Returns ``relu(layer(x))``, computed at once unless a hook watches the ReLU or it is no ReLU."""
    return layers.relu_of(layer, x) if layers.is_plain_relu(relu) else relu(layer(x))


def _sum(relu: flow.nn.Module, x: flow.Tensor, shortcut: flow.Tensor) -> flow.Tensor:
    """Returns ``relu(x + shortcut)``, computed at once unless a hook watches the ReLU or it is no ReLU."""
    return layers.add(x, shortcut, relu=True) if layers.is_plain_relu(relu) else relu(layers.add(x, shortcut))


class BasicBlock(layers.ImageLayer, flow.nn.Module):
    """The block of ``resnet18`` and ``resnet34``: two convolutions, whose result is added to their input."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns feature maps (N, C', H', W') of feature maps (N, C, H, W)."""
        x, shortcut = layers.fork(x)
        x = self.bn2(self.conv2(_activated(self.relu, self.bn1, self.conv1(x))))
        return _sum(self.relu, x, shortcut if self.downsample is None else self.downsample(shortcut))


class Bottleneck(layers.ImageLayer, flow.nn.Module):
    """The block of ``resnet50`` and larger ones: three convolutions, whose result is added to their input."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns feature maps (N, C', H', W') of feature maps (N, C, H, W)."""
        x, shortcut = layers.fork(x)
        x = _activated(self.relu, self.bn1, self.conv1(x))
        x = self.bn3(self.conv3(_activated(self.relu, self.bn2, self.conv2(x))))
        return _sum(self.relu, x, shortcut if self.downsample is None else self.downsample(shortcut))


class MobileNetBlock(layers.ImageLayer, flow.nn.Module):
    """The block of ``mobilenet_v3``: a sequence of layers, whose result may be added to their input."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns feature maps (N, C', H', W') of feature maps (N, C, H, W)."""
        if not self.use_res_connect:
            return self.block(x)
        x, shortcut = layers.fork(x)
        return layers.add(self.block(x), shortcut)


class SqueezeExcitation(layers.ImageLayer, flow.nn.Module):
    """The layer of ``mobilenet_v3`` that multiplies each channel by a factor, computed from all means."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the scaled feature maps, (N, C, H, W)."""
        x, means = layers.fork(x)
        factors = self.fc2(self.relu(self.fc1(self.adaptive_avg_pool2d(means))))
        return layers.scale(x, self.hardsigmoid(factors))


class ShuffleBlock(layers.ImageLayer, flow.nn.Module):
    """The block of ``shufflenet_v2``: one half of the channels, or all, through each of two branches."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns feature maps (N, C', H', W') of (N, C, H, W): the branches' channels in turn."""
        if self.stride == 1:
            kept, x = layers.halves(x)
            return layers.interleave(kept, self.branch2(x))
        first, second = layers.fork(x)
        return layers.interleave(self.branch1(first), self.branch2(second))


BLOCKS: dict[str, type[flow.nn.Module]] = {
    "flowvision.models.resnet.BasicBlock": BasicBlock,
    "flowvision.models.resnet.Bottleneck": Bottleneck,
    "flowvision.models.mobilenet_v3.InvertedResidual": MobileNetBlock,
    "flowvision.models.mobilenet_v3.SqueezeExcitation": SqueezeExcitation,
    "flowvision.models.shufflenet_v2.InvertedResidual": ShuffleBlock,
}
"""kdtrain's block for each of flowvision's, by the full name of its class."""

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
        return type(kind.__name__, (layers.ElementwiseLayer, kind), {})
    if issubclass(kind, flow.nn.Sequential) and kind.forward is flow.nn.Sequential.forward:
        return (
            layers.Sequential
            if kind is flow.nn.Sequential
            else type(kind.__name__, (layers.Sequential, kind), {})
        )
    return kind
