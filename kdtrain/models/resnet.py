"""Residual networks for small images: ``resnet8`` and ``resnet20``."""

from __future__ import annotations

from kdtrain.models.networks import ImageShape
from kdtrain.nn.layers import (
    BatchNorm2d,
    Conv2d,
    add,
    channels_last,
    fork,
    mean_over_pixels,
    relu_of,
    subsample,
)
from kdtrain.runtime import flow


class ResNet(flow.nn.Module):
    """The networks of He, Zhang, Ren, Sun, "Deep Residual Learning" (2015), section 4.2, for 32x32 pixels.

    A convolution, three stages of residual blocks with 16, 32 and 64 channels, the mean over all
    pixels, and a linear layer. The second and the third stage begin by halving height and width.
    Shortcuts have no parameters (the paper's option A). Images of other sizes work too, because the
    last feature maps are averaged.

    Args:
        image_shape: channels, height, width.
        num_classes: the number of logits.
        depth: 6n + 2 layers with weights, for n blocks in a stage.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int, depth: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = _conv3x3(image_shape[0], 16)
        self.bn1 = BatchNorm2d(16)
        self.stage1 = _stage(16, 16, blocks, stride=1)
        self.stage2 = _stage(16, 32, blocks, stride=2)
        self.stage3 = _stage(32, 64, blocks, stride=2)
        self.fc = flow.nn.Linear(64, num_classes)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns logits (N, classes) of images (N, C, H, W)."""
        x = relu_of(self.bn1, self.conv1(channels_last(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(mean_over_pixels(x))


class _Block(flow.nn.Module):
    """A residual block: two convolutions, whose result is added to their input."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels_in, channels, stride)
        self.bn1 = BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = BatchNorm2d(channels)
        self.stride, self.new_channels = stride, channels - channels_in

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns feature maps (N, C', H', W') of feature maps (N, C, H, W)."""
        x, shortcut = fork(x)
        x = self.bn2(self.conv2(relu_of(self.bn1, self.conv1(x))))
        if self.new_channels:  # option A: every other pixel, and new channels of zeros
            shortcut = subsample(shortcut, self.stride, self.new_channels)
        return add(x, shortcut, relu=True)


def _conv3x3(channels_in: int, channels: int, stride: int = 1) -> Conv2d:
    """Returns a convolution that keeps the size, or halves it, with He's initial weights."""
    conv = Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
    flow.nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> flow.nn.Sequential:
    first = _Block(channels_in, channels, stride)
    return flow.nn.Sequential(first, *(_Block(channels, channels, 1) for _ in range(blocks - 1)))
