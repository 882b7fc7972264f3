"""The blocks of flowvision's networks, with the layers of the same names, in which images stay channels last.

flowvision's own blocks use operations of OneFlow's that are slow in that layout, or in general.
"""

from __future__ import annotations

from kdtrain.nn.layers import (
    ImageLayer,
    add,
    fork,
    halves,
    interleave,
    is_plain_relu,
    relu_of,
    scale,
)
from kdtrain.runtime import flow


def _activated(relu: flow.nn.Module, layer: flow.nn.Module, x: flow.Tensor) -> flow.Tensor:
    """Returns ``relu(layer(x))``, computed at once unless a hook watches the ReLU or it is no ReLU."""
    return relu_of(layer, x) if is_plain_relu(relu) else relu(layer(x))


def _sum(relu: flow.nn.Module, x: flow.Tensor, shortcut: flow.Tensor) -> flow.Tensor:
    """Returns ``relu(x + shortcut)``, computed at once unless a hook watches the ReLU or it is no ReLU."""
    return add(x, shortcut, relu=True) if is_plain_relu(relu) else relu(add(x, shortcut))


class BasicBlock(ImageLayer, flow.nn.Module):
    """The block of ``resnet18`` and ``resnet34``: two convolutions, whose result is added to their input."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns feature maps (N, C', H', W') of feature maps (N, C, H, W)."""
        x, shortcut = fork(x)
        x = self.bn2(self.conv2(_activated(self.relu, self.bn1, self.conv1(x))))
        return _sum(self.relu, x, shortcut if self.downsample is None else self.downsample(shortcut))


class Bottleneck(ImageLayer, flow.nn.Module):
    """The block of ``resnet50`` and larger ones: three convolutions, whose result is added to their input."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns feature maps (N, C', H', W') of feature maps (N, C, H, W)."""
        x, shortcut = fork(x)
        x = _activated(self.relu, self.bn1, self.conv1(x))
        x = self.bn3(self.conv3(_activated(self.relu, self.bn2, self.conv2(x))))
        return _sum(self.relu, x, shortcut if self.downsample is None else self.downsample(shortcut))


class MobileNetBlock(ImageLayer, flow.nn.Module):
    """The block of ``mobilenet_v3``: a sequence of layers, whose result may be added to their input."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns feature maps (N, C', H', W') of feature maps (N, C, H, W)."""
        if not self.use_res_connect:
            return self.block(x)
        x, shortcut = fork(x)
        return add(self.block(x), shortcut)


class SqueezeExcitation(ImageLayer, flow.nn.Module):
    """The layer of ``mobilenet_v3`` that multiplies each channel by a factor, computed from all means."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the scaled feature maps, (N, C, H, W)."""
        x, means = fork(x)
        factors = self.fc2(self.relu(self.fc1(self.adaptive_avg_pool2d(means))))
        return scale(x, self.hardsigmoid(factors))


class ShuffleBlock(ImageLayer, flow.nn.Module):
    """The block of ``shufflenet_v2``: one half of the channels, or all, through each of two branches."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns feature maps (N, C', H', W') of (N, C, H, W): the branches' channels in turn."""
        if self.stride == 1:
            kept, x = halves(x)
            return interleave(kept, self.branch2(x))
        first, second = fork(x)
        return interleave(self.branch1(first), self.branch2(second))


BLOCKS: dict[str, type[flow.nn.Module]] = {
    "flowvision.models.resnet.BasicBlock": BasicBlock,
    "flowvision.models.resnet.Bottleneck": Bottleneck,
    "flowvision.models.mobilenet_v3.InvertedResidual": MobileNetBlock,
    "flowvision.models.mobilenet_v3.SqueezeExcitation": SqueezeExcitation,
    "flowvision.models.shufflenet_v2.InvertedResidual": ShuffleBlock,
}
"""kdtrain's block for each of flowvision's, by the full name of its class."""
