"""Layers with the parameters of OneFlow's own, where OneFlow 0.9.0's are slow or wrong."""

from __future__ import annotations

from kdtrain.errors import UsageError
from kdtrain.models.numpy_ops import Convolution, DropoutMask, MaxPool, runs_in_numpy
from kdtrain.runtime import flow

F = flow.nn.functional


class Conv2d(flow.nn.Conv2d):
    """OneFlow's convolution with the same parameters and results, but faster on the CPU.

    OneFlow's collects the pixels under the kernel one by one, once more in the backward pass, and adds
    its bias in a reference loop that takes longer than all the rest.
    """

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the convolved images, (N, C, H, W) to (N, C', H', W')."""
        if not runs_in_numpy(x):
            return super().forward(x)
        bias = flow.zeros(self.out_channels, dtype=x.dtype) if self.bias is None else self.bias
        if self.groups == 1 and set(self.stride) == {1} and set(self.dilation) == {1}:
            down, right = self.padding
            if down or right:
                x = F.pad(x, (right, right, down, down))
            return Convolution().apply(x, self.weight, bias)
        y = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        return y + bias.reshape(1, -1, 1, 1)


def max_pool2d(x: flow.Tensor) -> flow.Tensor:
    """Returns the largest of each 2x2 pixels, (N, C, H, W) to (N, C, H // 2, W // 2).

    Result and gradient are OneFlow's; on the CPU it takes a third of the time.
    """
    return MaxPool().apply(x) if runs_in_numpy(x) else F.max_pool2d(x, 2)


class BatchNorm1d(flow.nn.BatchNorm1d):
    """OneFlow's layer, with an error for a channel of one value, which OneFlow turns into NaN."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the normalised features, (N, C) or (N, C, L)."""
        _check_values(self, x)
        return super().forward(x)


class BatchNorm2d(flow.nn.BatchNorm2d):
    """OneFlow's layer for images, with the error of ``BatchNorm1d``."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the normalised images, (N, C, H, W)."""
        _check_values(self, x)
        return super().forward(x)


def _check_values(layer: flow.nn.Module, x: flow.Tensor) -> None:
    if layer.training and x.numel() == x.shape[1]:
        raise UsageError(
            "a batch of one image cannot be trained on: a batch normalisation of this network sees a single "
            "value in each channel. Give each process at least 2 images: --batch-size, --limit-train."
        )


class Dropout(flow.nn.Module):
    """Dropout that follows ``flow.manual_seed``.

    Each ``nn.Dropout`` of OneFlow's has its own generator, which starts at a constant: no seed reaches
    it, and two layers of one shape drop the same units. This layer draws from the default generator.

    Args:
        p: the fraction of units that are set to 0 in training.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns ``x`` with a fraction ``p`` of its values set to 0 and the others scaled by 1/(1-p).

        Args:
            x: float32 of any shape.
        """
        if not self.training or self.p == 0:
            return x
        return DropoutMask(self.p).apply(x) if runs_in_numpy(x) else F.dropout(x, self.p)

    def extra_repr(self) -> str:
        """Returns the text of this layer in ``print(model)``."""
        return f"p={self.p}"
