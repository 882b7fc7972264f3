"""The convolutional student for images of about 28x28 to 64x64 pixels: ``student_cnn``."""

from __future__ import annotations

from kdtrain.models.networks import ImageShape
from kdtrain.nn.layers import (
    BatchNorm2d,
    Conv2d,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    channels_last,
    mean_over_pixels,
)
from kdtrain.runtime import flow

SMALLEST_SIDE = 4
"""Pixels, from which two poolings leave one."""

_LARGE_SIDE = 48  # pixels: with two poolings, a unit of the last convolution would see 26 of them


class StudentCnn(flow.nn.Module):
    """Four blocks, the mean over all pixels, and a linear layer (47,194 parameters on MNIST).

    A block is a 3x3 convolution with batch normalisation and ReLU. The first two end with a 2x2 max
    pooling. So does the third for images of 48 pixels or more.

    Args:
        image_shape: channels, height, width; both sides have at least ``SMALLEST_SIDE`` pixels.
        num_classes: the number of logits.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.block1 = _block(channels, 16, pooled=True)
        self.block2 = _block(16, 32, pooled=True)
        self.block3 = _block(32, 48, pooled=min(height, width) >= _LARGE_SIDE)
        self.block4 = _block(48, 64, pooled=False)
        self.fc = Linear(64, num_classes)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns logits (N, classes) of images (N, C, H, W)."""
        x = self.block2(self.block1(channels_last(x)))
        return self.fc(mean_over_pixels(self.block4(self.block3(x))))


def _block(channels_in: int, channels: int, pooled: bool) -> Sequential:
    """Returns a block, whose convolution has He's initial weights."""
    conv = Conv2d(channels_in, channels, 3, padding=1, bias=False)
    flow.nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return Sequential(conv, BatchNorm2d(channels), ReLU(), *([MaxPool2d(2)] if pooled else []))
