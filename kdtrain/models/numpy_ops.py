"""Convolution, max pooling and dropout in NumPy and OpenBLAS, for OneFlow's autograd on the CPU."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib.stride_tricks import sliding_window_view

from kdtrain.runtime import flow
from kdtrain.runtime.openblas import Accumulation
from kdtrain.runtime.processor import zero_upper_avx

Array = npt.NDArray[np.floating[Any]]

_FEWEST_LINES = 16  # of a matrix, for a fast product


def runs_in_numpy(x: flow.Tensor) -> bool:
    """Returns whether NumPy can read a tensor: it is neither on a GPU nor part of a traced graph."""
    return not (x.is_cuda or x.is_lazy)


class Operation:
    """An operation with its own backward pass, for one call; attributes hold what that pass needs.

    ``flow.autograd.Function`` holds it in a context instead, whose attributes lose a reference each
    time they are read, until their memory is freed while it is in use.
    """

    def apply(self, *inputs: flow.Tensor) -> flow.Tensor:
        """Returns the result, as a node of autograd's graph."""

        def forward(context: object, *inputs: flow.Tensor) -> flow.Tensor:
            return self.forward(*inputs)

        def backward(context: object, gradient: flow.Tensor) -> Any:
            return self.backward(gradient)

        function = flow._oneflow_internal.autograd.AutogradFunctionBase
        return function.apply(type(self).__name__, forward, backward, *inputs)

    def forward(self, *inputs: Any) -> flow.Tensor:
        """Returns the result, float32; the subclass states the shapes of inputs and result."""
        raise NotImplementedError

    def backward(self, gradient: flow.Tensor) -> Any:
        """Returns the gradient of each input, in the input's shape, given the gradient of the result."""
        raise NotImplementedError


class Convolution(Operation):
    """A convolution of stride 1, as a few matrix products per image that add up in the result.

    For each column of the kernel, the pixels that it passes over are copied into a band. The pixels
    under one row of the kernel are then a contiguous part of the band, and those under the next row
    begin one row of pixels later, so no row of the kernel needs another copy. The band of one image
    fits into the core's cache. The backward pass fills the bands again instead of keeping them.
    """

    def forward(self, x: flow.Tensor, weight: flow.Tensor, bias: flow.Tensor) -> flow.Tensor:
        """Returns the convolved images.

        Args:
            x: (N, C, H, W) float32 or float64, as are the others.
            weight: (C', C, kh, kw).
            bias: (C',).

        Returns:
            (N, C', H - kh + 1, W - kw + 1).
        """
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
        """Returns the gradients of images, weight and bias.

        Args:
            dy: the gradient of the result, (N, C', H', W').

        Returns:
            (N, C, H, W), or None if the images need none; (C', C, kh, kw); (C',).
        """
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
    """The layout of the pixels that a kernel passes over.

    A band has R = I * J * C lines: for each of the kernel's J columns, each of the C channels. If these
    are too few for fast products, a band has lines for each of the kernel's I rows as well. Otherwise
    I is 1, and the kernel is multiplied row by row, in S = kh steps.
    """

    def __init__(self, image_shape: Sequence[int], kernel: Sequence[int]) -> None:
        self.channels, height, width = image_shape
        self.kernel = kernel
        self.out_shape = height - kernel[0] + 1, width - kernel[1] + 1
        together = kernel[0] if self.channels * kernel[1] < _FEWEST_LINES else 1
        self.size = height - together + 1, self.out_shape[1]
        self.shape = together, kernel[1], self.channels, *self.size

    def over(self, images: Array) -> Array:
        """Returns the content of each image's band, as a view of the images: (N, I, J, C, H'', W')."""
        over: Array = sliding_window_view(  # type: ignore[call-overload] # NumPy 1.23 declares one axis only
            images, self.size, axis=(2, 3), writeable=True
        )
        return over.transpose(0, 2, 3, 1, 4, 5)

    def empty(self, dtype: npt.DTypeLike) -> tuple[Array, Array]:
        """Returns a band (I, J, C, H'', W') and a view of the kernel rows' pixels (S, R, H' * W')."""
        band = np.empty(self.shape, dtype)
        (height, width), lines = self.out_shape, math.prod(self.shape[:3])
        seen = sliding_window_view(band.reshape(lines, -1), height * width, axis=1, writeable=True)
        return band, seen[:, ::width].transpose(1, 0, 2)

    def filters(self, weight: Array) -> Array:
        """Returns weights (C', C, kh, kw) as the left factors of the products: (S, C', R)."""
        lines = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1, math.prod(self.shape[:3]))
        return np.ascontiguousarray(lines.transpose(1, 0, 2))

    def weight(self, filters: Array) -> Array:
        """Returns the weights (C', C, kh, kw) of filters (S, C', R)."""
        lines = filters.transpose(1, 0, 2).reshape(filters.shape[1], *self.kernel, self.channels)
        return np.ascontiguousarray(lines.transpose(0, 3, 1, 2))


class MaxPool(Operation):
    """Max pooling of 2x2 pixels.

    Pairs of columns are compared first, then pairs of rows. So the first of equal pixels, row by row,
    gets the gradient, as in OneFlow.
    """

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the maxima, (N, C, H, W) to (N, C, H // 2, W // 2)."""
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
        """Returns the gradient of the pixels, (N, C, H, W): that of the maximum at its pixel, 0 elsewhere."""
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


class DropoutMask(Operation):
    """Dropout: OneFlow's default generator gives a seed, from which NumPy draws 16 bits a unit.

    It takes a third of the time of OneFlow's own.

    Args:
        p: the fraction of units that are set to 0.
    """

    def __init__(self, p: float) -> None:
        self.p = p

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns ``x``, of any shape, with units set to 0 and the rest scaled by 1/(1-p)."""
        values, seed = x.numpy(), flow.randint(0, 2**31 - 1, (1,)).item()
        bits = np.random.Generator(np.random.SFC64(seed)).integers(0, 2**16, values.shape, np.uint16)
        self.factors = (bits >= round(self.p * 2**16)).astype(values.dtype)
        self.factors *= 1 / (1 - self.p) if self.p < 1 else 0
        return flow.from_numpy(values * self.factors)

    def backward(self, dy: flow.Tensor) -> flow.Tensor:
        """Returns the gradient of ``x``: that of the result, times the same factors."""
        return flow.from_numpy(dy.numpy() * self.factors)
