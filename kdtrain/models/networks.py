"""Networks for small images: ``teacher_cnn``, both students, and those of Hinton's paper."""

from __future__ import annotations

from kdtrain.nn.layers import (
    BatchNorm2d,
    Conv2d,
    Dropout,
    Linear,
    MaxPool2d,
    ReLU,
    Sequential,
    channels_first,
    channels_last,
    linear_layers,
    max_pool2d,
    mean_over_pixels,
    relu,
    relu_of,
)
from kdtrain.runtime import flow

ImageShape = tuple[int, int, int]
"""Channels, height, width."""

SMALLEST_SIDE = 4
"""Pixels of an image for ``student_cnn``, from which two poolings leave one."""

_LARGE_SIDE = 48  # pixels of the same: with two poolings, a unit of the last convolution would see 26 of them


class TeacherCnn(flow.nn.Module):
    """Two convolutions and two fully connected layers with dropout (1,199,882 parameters on MNIST)."""

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.conv1 = Conv2d(channels, 32, 3)
        self.conv2 = Conv2d(32, 64, 3)
        self.dropout1 = Dropout(0.3)
        self.dropout2 = Dropout(0.5)
        self.fc1 = Linear(64 * ((height - 4) // 2) * ((width - 4) // 2), 128)
        self.fc2 = Linear(128, num_classes)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns logits (N, classes) of images (N, C, H, W)."""
        x = relu_of(self.conv1, channels_last(x))
        x = relu(max_pool2d(self.conv2(x)))  # the order does not matter; this one is a quarter of the work
        x = self.dropout1(channels_first(x))
        x = relu_of(self.fc1, flow.flatten(x, 1))
        return self.fc2(self.dropout2(x))


class StudentMlp(flow.nn.Module):
    """Three fully connected layers, 128 and 64 units wide (109,386 parameters on MNIST).

    There is no ReLU on the logits, unlike in OneFlow's sample: it can fix a class's logit at 0, without
    a gradient.
    """

    def __init__(self, image_shape: ImageShape, num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.fc1 = Linear(channels * height * width, 128)
        self.fc2 = Linear(128, 64)
        self.fc3 = Linear(64, num_classes)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns logits (N, classes) of images (N, C, H, W)."""
        return linear_layers(flow.flatten(x, 1), [self.fc1, self.fc2, self.fc3], [True, True, False])


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


class HintonMlp(flow.nn.Module):
    """Two hidden layers of equal width (Hinton, Vinyals, Dean 2015, section 3).

    Args:
        image_shape: channels, height, width.
        num_classes: the number of logits.
        width: units in each hidden layer: 1200 for the paper's teacher, 800 for its student.
        dropout: fraction of hidden units dropped in training.
        input_dropout: fraction of pixels dropped in training, that is, set to the mean pixel.
    """

    def __init__(
        self,
        image_shape: ImageShape,
        num_classes: int,
        width: int,
        dropout: float = 0.0,
        input_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        channels, height, width_in = image_shape
        self.dropout0 = Dropout(input_dropout)
        self.fc1 = Linear(channels * height * width_in, width)
        self.fc2 = Linear(width, width)
        self.fc3 = Linear(width, num_classes)
        self.dropout1 = Dropout(dropout)
        self.dropout2 = Dropout(dropout)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns logits (N, classes) of images (N, C, H, W)."""
        x = self.dropout0(flow.flatten(x, 1))
        if not self.training or self.dropout1.p == self.dropout2.p == 0:
            return linear_layers(x, [self.fc1, self.fc2, self.fc3], [True, True, False])
        x = self.dropout1(relu_of(self.fc1, x))
        x = self.dropout2(relu_of(self.fc2, x))
        return self.fc3(x)
