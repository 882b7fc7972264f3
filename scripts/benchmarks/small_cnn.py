"""A small convolutional network: --student-arch scripts/benchmarks/small_cnn.py:make."""

from __future__ import annotations

from kdtrain import Conv2d, flow

F = flow.nn.functional


class SmallCnn(flow.nn.Module):
    """Two convolutions with 8 and 16 channels and one fully connected layer.

    Args:
        image_shape: channels, height and width.
        num_classes: number of logits.
    """

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels, height, width = image_shape
        self.conv1 = Conv2d(channels, 8, 3)
        self.conv2 = Conv2d(8, 16, 3)
        self.fc = flow.nn.Linear(16 * ((height - 2) // 2 - 2) * ((width - 2) // 2 - 2), num_classes)

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns logits (N, classes) of images (N, C, H, W)."""
        x = F.relu(flow.nn.functional.max_pool2d(self.conv1(x), 2))
        return self.fc(flow.flatten(F.relu(self.conv2(x)), 1))


def make(image_shape: tuple[int, int, int], num_classes: int) -> flow.nn.Module:
    """Returns the network."""
    return SmallCnn(image_shape, num_classes)
