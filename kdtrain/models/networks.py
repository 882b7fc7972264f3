"""Networks for small images: ``teacher_cnn``, ``student_mlp``, and those of Hinton's paper."""

from __future__ import annotations

from kdtrain.nn.layers import (
    Conv2d,
    Dropout,
    Linear,
    channels_first,
    channels_last,
    max_pool2d,
    relu,
    relu_of,
)
from kdtrain.runtime import flow

ImageShape = tuple[int, int, int]
"""Channels, height, width."""


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
        x = relu(self.fc1(flow.flatten(x, 1)))
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
        x = relu(self.fc1(flow.flatten(x, 1)))
        x = relu(self.fc2(x))
        return self.fc3(x)


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
        x = self.dropout1(relu(self.fc1(x)))
        x = self.dropout2(relu(self.fc2(x)))
        return self.fc3(x)
