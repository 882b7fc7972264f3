"""Layers with the parameters of OneFlow's own, where OneFlow 0.9.0's are slow or wrong."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from kdtrain.errors import UsageError
from kdtrain.runtime import flow
from kdtrain.runtime.openblas import Accumulation
from kdtrain.runtime.processor import zero_upper_avx

F = flow.nn.functional

Array = npt.NDArray[np.floating[Any]]

_FEWEST_LINES = 16  # of a matrix, for its products to be fast


class Conv2d(flow.nn.Conv2d):
    """OneFlow's convolution, with the same parameters and numbers, made fast for the CPU.

    OneFlow's own collects the pixels under the kernel one by one, in the backward pass once more,
    and adds its bias in a reference loop that takes longer than all the rest.
    """

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the convolved images, (N, C, H, W) to (N, C', H', W')."""
        if not _in_numpy(x):
            return super().forward(x)
        bias = flow.zeros(self.out_channels, dtype=x.dtype) if self.bias is None else self.bias
        if self.groups == 1 and set(self.stride) == {1} and set(self.dilation) == {1}:
            down, right = self.padding
            if down or right:
                x = F.pad(x, (right, right, down, down))
            return _Convolution().apply(x, self.weight, bias)
        y = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        return y + bias.reshape(1, -1, 1, 1)


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
    """A convolution as a few matrix products per image, added up where the result is to be.

    For each column of the kernel, the pixels that it passes over are copied into a band. What one row
    of the kernel sees is then a part of the band in one piece, and the next row's begins one row of
    pixels later: no pixel is copied once more for each row of the kernel. All this happens within the
    core's own cache, image by image, and is done again in the backward pass rather than kept.
    """

    def forward(self, x: flow.Tensor, weight: flow.Tensor, bias: flow.Tensor) -> flow.Tensor:
        """Returns images (N, C', H', W') of ``x`` (N, C, H, W) and ``weight`` (C', C, kh, kw)."""
        self.x, self.image_wanted = x.detach(), x.requires_grad
        self.bands = _Bands(x.shape[1:], weight.shape[2:])
        self.filters = self.bands.filters(weight.numpy())
        y = np.empty((len(x), len(weight), *self.bands.out_shape), self.filters.dtype)
        y[:] = bias.numpy()[:, None, None]
        band, seen = self.bands.empty(y.dtype)
        multiply = Accumulation(self.filters, seen, y.reshape(len(x), 1, len(weight), -1))
        for n, pixels in enumerate(self.bands.over(x.numpy())):
            band[:] = pixels
            multiply(n)
        zero_upper_avx()
        return flow.from_numpy(y)

    def backward(self, dy: flow.Tensor) -> tuple[flow.Tensor | None, flow.Tensor, flow.Tensor]:
        """Returns the gradients of images, weight and bias for that of the output."""
        x, gradients = self.x.numpy(), np.ascontiguousarray(dy.numpy())
        gradients = gradients.reshape(len(x), 1, self.filters.shape[1], -1)
        dx, dfilters = np.zeros(x.shape, x.dtype), np.zeros_like(self.filters)
        (band, seen), (dband, dseen) = self.bands.empty(x.dtype), self.bands.empty(x.dtype)
        for_filters = Accumulation(gradients, seen.transpose(0, 2, 1), dfilters)
        for_image = Accumulation(self.filters.transpose(0, 2, 1), gradients, dseen)
        for n, (pixels, dpixels) in enumerate(zip(self.bands.over(x), self.bands.over(dx), strict=True)):
            band[:] = pixels
            for_filters(n)
            if self.image_wanted:
                dband[:] = 0
                for_image(n)
                for place in np.ndindex(band.shape[:2]):  # one after another: their pixels overlap
                    dpixels[place] += dband[place]
        zero_upper_avx()
        dweight, dbias = self.bands.weight(dfilters), gradients.sum((0, 1, 3))
        return flow.from_numpy(dx) if self.image_wanted else None, *map(flow.from_numpy, (dweight, dbias))


class _Bands:
    """Where the pixels of an image go that a kernel passes over.

    A band has R = I * J * C lines: for each of the kernel's J columns, each of the C channels, and, where
    those are so few that the products would be slow, each of its I rows. Else I is 1, and the kernel is
    multiplied row by row, in S = kh steps.
    """

    def __init__(self, image_shape: Sequence[int], kernel: Sequence[int]) -> None:
        self.channels, height, width = image_shape
        self.kernel = kernel
        self.out_shape = height - kernel[0] + 1, width - kernel[1] + 1
        together = kernel[0] if self.channels * kernel[1] < _FEWEST_LINES else 1
        self.size = height - together + 1, self.out_shape[1]
        self.shape = together, kernel[1], self.channels, *self.size

    def over(self, images: Array) -> Array:
        """Returns what goes into the band of each image, as a view of them: (N, I, J, C, H'', W')."""
        over: Array = sliding_window_view(  # type: ignore[call-overload] # NumPy 1.23 declares one axis only
            images, self.size, axis=(2, 3), writeable=True
        )
        return over.transpose(0, 2, 3, 1, 4, 5)

    def empty(self, dtype: npt.DTypeLike) -> tuple[Array, Array]:
        """Returns a band (I, J, C, H'', W'), and a view of what the kernel's rows see: (S, R, H' * W')."""
        band = np.empty(self.shape, dtype)
        (height, width), lines = self.out_shape, math.prod(self.shape[:3])
        seen = sliding_window_view(band.reshape(lines, -1), height * width, axis=1, writeable=True)
        return band, seen[:, ::width].transpose(1, 0, 2)

    def filters(self, weight: Array) -> Array:
        """Returns weights (C', C, kh, kw) as factors of what the rows see: (S, C', R)."""
        lines = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1, math.prod(self.shape[:3]))
        return np.ascontiguousarray(lines.transpose(1, 0, 2))

    def weight(self, filters: Array) -> Array:
        """Returns the weights of which these are the filters."""
        lines = filters.transpose(1, 0, 2).reshape(filters.shape[1], *self.kernel, self.channels)
        return np.ascontiguousarray(lines.transpose(0, 3, 1, 2))


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
        if not self.training or self.p == 0:
            return x
        return _Dropout(self.p).apply(x) if _in_numpy(x) else F.dropout(x, self.p)

    def extra_repr(self) -> str:
        """Returns what ``print(model)`` shows of this layer."""
        return f"p={self.p}"


class _Dropout(_Operation):
    """The default generator gives a seed; NumPy draws 16 bits a unit from it, in a third of the time."""

    def __init__(self, p: float) -> None:
        self.p = p

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns what is left."""
        values, seed = x.numpy(), flow.randint(0, 2**31 - 1, (1,)).item()
        bits = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**16, values.shape, np.uint16)
        self.factors = (bits >= round(self.p * 2**16)).astype(values.dtype)
        self.factors *= 1 / (1 - self.p) if self.p < 1 else 0
        return flow.from_numpy(values * self.factors)

    def backward(self, dy: flow.Tensor) -> flow.Tensor:
        """Returns the gradient: what is left of that of the output."""
        return flow.from_numpy(dy.numpy() * self.factors)
