"""Layers with the parameters of OneFlow's own, where OneFlow 0.9.0's are slow or wrong."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from kdtrain.errors import UsageError
from kdtrain.runtime import clear_wide_registers, flow

F = flow.nn.functional

Array = npt.NDArray[np.floating[Any]]

_MOST_COLUMNS = 1 << 25  # numbers, 128 MiB: what a convolution keeps for its backward pass


class Conv2d(flow.nn.Conv2d):
    """OneFlow's convolution, with the same parameters and numbers, made fast for the CPU.

    OneFlow's own collects the pixels under the kernel one by one, in the backward pass once more,
    and adds its bias in a reference loop that takes longer than all the rest. Only where an image has
    fewer places than channels come out is its way the faster one, and one with less memory: ours
    multiplies each image by itself, and has a gradient of all the weights for each.
    """

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the convolved images, (N, C, H, W) to (N, C', H', W')."""
        if not _in_numpy(x):
            return super().forward(x)
        bias = flow.zeros(self.out_channels) if self.bias is None else self.bias
        if self.groups == 1 and set(self.stride) == {1} and set(self.dilation) == {1} and self._suits(x):
            down, right = self.padding
            if down or right:
                x = F.pad(x, (right, right, down, down))
            return _Convolution().apply(x, self.weight, bias)
        y = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        return y + bias.reshape(1, -1, 1, 1)

    def _suits(self, x: flow.Tensor) -> bool:
        sizes = zip(x.shape[2:], self.padding, self.kernel_size, strict=True)
        places: int = math.prod(int(size) + 2 * margin - kernel + 1 for size, margin, kernel in sizes)
        channels: int = self.out_channels
        return places >= channels


def _in_numpy(x: flow.Tensor) -> bool:
    """Returns whether NumPy can work on a tensor: not on a GPU's, nor while a graph is traced."""
    return not (x.is_cuda or x.is_lazy)


class _Operation:
    """An operation with a backward pass of its own; what that needs is kept in attributes.

    ``flow.autograd.Function`` would keep it in a context, whose attributes lose a reference each
    time they are read: sooner or later their memory is somebody else's.
    """

    def apply(self, *inputs: flow.Tensor) -> flow.Tensor:
        """Returns the result, which remembers how it came about."""

        def forward(context: object, *inputs: flow.Tensor) -> flow.Tensor:
            return self.forward(*inputs)

        def backward(context: object, gradient: flow.Tensor) -> Any:
            return self.backward(gradient)

        function = flow._oneflow_internal.autograd.AutogradFunctionBase
        return function.apply(type(self).__name__, forward, backward, *inputs)

    def forward(self, *inputs: Any) -> flow.Tensor:
        """Returns the result."""
        raise NotImplementedError

    def backward(self, gradient: flow.Tensor) -> Any:
        """Returns the gradient of each input for that of the result."""
        raise NotImplementedError


class _Convolution(_Operation):
    """A convolution as one matrix product per image.

    The matrix of an image has a row for each place of the kernel and channel, and one for the bias.
    Where those of a batch would be too large, a few images at a time are worked on, and their
    matrices are made once more in the backward pass.
    """

    def forward(self, x: flow.Tensor, weight: flow.Tensor, bias: flow.Tensor) -> flow.Tensor:
        """Returns images (N, C', H', W') of ``x`` (N, C, H, W) and ``weight`` (C', C, kh, kw)."""
        channels, _, *kernel = weight.shape
        self.x, self.filters, self.image_wanted = x.detach(), weight.shape, x.requires_grad
        height, width = x.shape[2] - kernel[0] + 1, x.shape[3] - kernel[1] + 1
        rows = weight.permute(0, 2, 3, 1).reshape(channels, -1)
        self.matrix = flow.cat([rows, bias.reshape(-1, 1)], dim=1)
        at_once = max(1, _MOST_COLUMNS // (self.matrix.shape[1] * height * width))
        self.pieces = [slice(start, start + at_once) for start in range(0, len(x), at_once)]
        if len(self.pieces) == 1:
            self.columns = flow.from_numpy(_columns(x.numpy(), *kernel))
            y = flow.matmul(self.matrix, self.columns)
        else:
            y = flow.from_numpy(
                np.concatenate(
                    [flow.matmul(self.matrix, self._columns_of(piece)).numpy() for piece in self.pieces]
                )
            )
        clear_wide_registers()
        return y.reshape(len(x), channels, height, width)

    def backward(self, dy: flow.Tensor) -> tuple[flow.Tensor | None, flow.Tensor, flow.Tensor]:
        """Returns the gradients of images, weight and bias for that of the output."""
        out_channels, in_channels, *kernel = self.filters
        count, _, height, width = dy.shape
        dy = dy.reshape(count, out_channels, height * width)
        dmatrix = np.zeros(self.matrix.shape, self.x.numpy().dtype)
        dx = np.zeros(self.x.shape, dmatrix.dtype) if self.image_wanted else None
        filters = self.matrix[:, :-1].T.contiguous() if self.image_wanted else None
        for piece in self.pieces:
            # matmul would transpose its second factor first: slow
            products = flow._C.batch_matmul(dy[piece], self._columns_of(piece), False, True)
            dmatrix += products.sum(0).numpy()
            if dx is None:
                continue
            dcolumns = flow.matmul(filters, dy[piece]).numpy()
            dcolumns = dcolumns.reshape(-1, *kernel, in_channels, height, width)
            for i, j in np.ndindex(*kernel):
                dx[piece, :, i : i + height, j : j + width] += dcolumns[:, i, j]
        dweight = dmatrix[:, :-1].reshape(out_channels, *kernel, in_channels).transpose(0, 3, 1, 2)
        gradients = (np.ascontiguousarray(array) for array in (dweight, dmatrix[:, -1]))
        return (None if dx is None else flow.from_numpy(dx), *map(flow.from_numpy, gradients))

    def _columns_of(self, piece: slice) -> flow.Tensor:
        if len(self.pieces) == 1:
            return self.columns
        return flow.from_numpy(_columns(self.x.numpy()[piece], *self.filters[2:]))


def _columns(x: Array, *kernel: int) -> Array:
    """Returns for each place of the kernel the pixels under it, and a 1: (N, kh * kw * C + 1, H' * W')."""
    count, channels, height, width = x.shape
    height, width = height - kernel[0] + 1, width - kernel[1] + 1
    columns = np.empty((count, math.prod(kernel) * channels + 1, height, width), x.dtype)
    for place, (i, j) in enumerate(np.ndindex(*kernel)):
        rows = slice(place * channels, (place + 1) * channels)
        columns[:, rows] = x[:, :, i : i + height, j : j + width]
    columns[:, -1] = 1
    return columns.reshape(count, -1, height * width)


def max_pool2d(x: flow.Tensor) -> flow.Tensor:
    """Returns the largest of each 2x2 pixels, (N, C, H, W) to (N, C, H // 2, W // 2).

    The same as oneflow's, also in which of equal pixels gets the gradient; on the CPU in a third of
    its time.
    """
    return _MaxPool().apply(x) if _in_numpy(x) else F.max_pool2d(x, 2)


class _MaxPool(_Operation):
    """Pairs of columns first, then pairs of rows: so the first of equal pixels, row by row, wins."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the maxima."""
        count, channels, height, width = self.shape = x.shape
        pixels = x.numpy()[:, :, : height // 2 * 2, : width // 2 * 2]
        pixels = pixels.reshape(count, channels, height // 2, 2, width // 2, 2)
        left, right = pixels[..., 0], pixels[..., 1]
        rows = np.maximum(left, right)
        upper, lower = rows[:, :, :, 0], rows[:, :, :, 1]
        if x.requires_grad:
            self.is_left, self.is_upper = left >= right, upper >= lower
        return flow.from_numpy(np.maximum(upper, lower))

    def backward(self, dy: flow.Tensor) -> flow.Tensor:
        """Returns the gradient of the pixels: that of the maximum for the one that it was, else 0."""
        count, channels, height, width = self.shape
        gradient = dy.numpy()
        upper = gradient * self.is_upper
        rows = np.empty(self.is_left.shape, gradient.dtype)
        rows[:, :, :, 0] = upper
        np.subtract(gradient, upper, out=rows[:, :, :, 1])
        pixels = np.empty((*rows.shape, 2), gradient.dtype)
        np.multiply(rows, self.is_left, out=pixels[..., 0])
        np.subtract(rows, pixels[..., 0], out=pixels[..., 1])
        pixels = pixels.reshape(count, channels, height // 2 * 2, width // 2 * 2)
        if height % 2 or width % 2:
            pixels = np.pad(pixels, ((0, 0), (0, 0), (0, height % 2), (0, width % 2)))
        return flow.from_numpy(pixels)


class BatchNorm1d(flow.nn.BatchNorm1d):
    """OneFlow's, but for an error where a channel has one value only: there it makes NaN, in silence."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the normalised features, (N, C) or (N, C, L)."""
        _check_values(self, x)
        return super().forward(x)


class BatchNorm2d(flow.nn.BatchNorm2d):
    """The same for images."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the normalised images, (N, C, H, W)."""
        _check_values(self, x)
        return super().forward(x)


def _check_values(layer: flow.nn.Module, x: flow.Tensor) -> None:
    if layer.training and x.numel() == x.shape[1]:
        raise UsageError(
            "one image alone cannot be trained on: a batch normalisation of this network sees a single value "
            "in each channel. Give each process 2 images at least: --batch-size, --limit-train."
        )


class Dropout(flow.nn.Module):
    """Dropout that follows ``flow.manual_seed``.

    Each ``nn.Dropout`` owns a generator that starts at a constant: no seed reaches it, and two
    layers of one shape drop the same units. This one draws from the default generator, in turn.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns ``x`` with a fraction ``p`` of units set to 0 and the rest scaled by 1/(1-p)."""
        clear_wide_registers()
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        """Returns what ``print(model)`` shows of this layer."""
        return f"p={self.p}"
