"""Operations of convolutional networks by oneDNN, on NumPy arrays; each is compiled once per shape.

Images are contiguous float32 arrays (N, H, W, C), "channels last". oneDNN's kernels are fast in that layout
on every processor, and neighbouring layers need no copies between them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Hashable, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from kdtrain.nn import onednn as dnn
from kdtrain.nn.onednn import Array, Description, Primitive, new_array

K = TypeVar("K", bound="Kernel")
Pair = tuple[int, int]
"""A number for rows and one for columns."""
Workspace = Sequence[npt.NDArray[np.uint8]]
"""What a forward pass keeps for its gradient, beside its arguments: one array or none."""

MOST_KERNELS = 1024
"""The number of kernels that are kept, those used last; a large network needs some 300."""
_LAST = 0, 2, 3, 1  # the axes (N, C, H, W) in memory, channels last


class Kernel:
    """An operation for arguments of certain shapes. ``of`` returns one that is kept."""

    @classmethod
    def of(cls: type[K], *arguments: Hashable) -> K:
        """Returns the kernel for these arguments of the constructor, and today's number of threads."""
        kernel: K = _kept(cls, dnn.available_threads(), *arguments)  # type: ignore[arg-type]
        return kernel


@functools.lru_cache(MOST_KERNELS)
def _kept(kind: Any, threads: int, *arguments: Any) -> Any:
    return kind(*arguments)


class ConvolutionKernel(Kernel):
    """A convolution, and its gradients.

    Args:
        images: N, H, W, C.
        weights: C', C / groups, kh, kw.
        stride, padding, dilation: for rows and columns.
        groups: the number of parts of the channels that are convolved separately.
        bias: whether a bias is added.
        relu: whether a ReLU follows.
    """

    def __init__(
        self,
        images: Sequence[int],
        weights: Sequence[int],
        stride: Pair,
        padding: Pair,
        dilation: Pair,
        groups: int,
        bias: bool,
        relu: bool,
    ) -> None:
        out, inner, *window = weights
        sizes = zip(images[1:3], window, stride, padding, dilation, strict=True)
        rows, columns = (
            (size + 2 * pad - gap * (w - 1) - 1) // step + 1 for size, w, step, pad, gap in sizes
        )
        self.shape, self.out_shape = tuple(images), (images[0], rows, columns, out)
        self._weights, self._bias = tuple(weights), (out,) if bias else None
        grouped = (groups, out // groups, inner, *window) if groups > 1 else self._weights
        self._plain = Description(grouped, range(len(grouped)))
        added = Description((out,), (0,)) if bias else None
        chosen = Description(grouped)
        geometry = stride, tuple(gap - 1 for gap in dilation), padding, padding
        self._work = 2e-5 * math.prod(self.out_shape[:3]) * math.prod(weights) + _passes(self.shape, 1)
        self._descriptions = _images(self.shape), chosen, added, _images(self.out_shape)
        arguments = (dnn.SRC, dnn.WEIGHTS, *([dnn.BIAS] if bias else []), dnn.DST)
        self._forward = Primitive(
            "convolution_forward",
            arguments,
            *(dnn.TRAINING, dnn.DIRECT, *self._descriptions, *geometry),
            work=self._work,
            relu=relu,
        )
        self._geometry = *geometry, self._forward
        self._to_forward = self._forward.reordering_of(dnn.WEIGHTS, self._plain)

    def forward(self, x: Array, weight: Array, *bias: Array) -> Array:
        """Returns the convolved images, (N, H', W', C')."""
        y = new_array(self.out_shape)
        self._forward(x, _reordered(weight, self._to_forward, self._forward), *bias, y)
        return y

    def gradient_of_images(self, dy: Array, weight: Array) -> Array:
        """Returns the gradient of the images, given that of the result without the ReLU."""
        dx = new_array(self.shape)
        self._for_images(dy, _reordered(weight, self._to_images, self._for_images), dx)
        return dx

    def gradients_of_weights(self, dy: Array, x: Array) -> list[Array]:
        """Returns the gradients of the weights, and of the bias if there is one."""
        chosen = new_array((self._for_weights.bytes_of(dnn.DIFF_WEIGHTS) // 4,))
        gradients = [new_array(self._weights), *([new_array(self._bias)] if self._bias else [])]
        self._for_weights(x, dy, chosen, *gradients[1:])
        self._from_weights(chosen, gradients[0])
        return gradients

    # Inference-only kernels do not create the following.

    @functools.cached_property
    def _for_images(self) -> Primitive:
        x, weights, _, y = self._descriptions
        parameters = dnn.DIRECT, x, weights, y, *self._geometry
        arguments = dnn.DIFF_DST, dnn.WEIGHTS, dnn.DIFF_SRC
        return Primitive("convolution_backward_data", arguments, *parameters, work=self._work)

    @functools.cached_property
    def _to_images(self) -> Primitive:
        return self._for_images.reordering_of(dnn.WEIGHTS, self._plain)

    @functools.cached_property
    def _for_weights(self) -> Primitive:
        parameters = dnn.DIRECT, *self._descriptions, *self._geometry
        arguments = (dnn.SRC, dnn.DIFF_DST, dnn.DIFF_WEIGHTS, *([dnn.DIFF_BIAS] if self._bias else []))
        return Primitive("convolution_backward_weights", arguments, *parameters, work=self._work)

    @functools.cached_property
    def _from_weights(self) -> Primitive:
        return self._for_weights.reordering_of(dnn.DIFF_WEIGHTS, self._plain, back=True)


def _reordered(weight: Array, reordering: Primitive, user: Primitive) -> Array:
    """Returns weights (C', C / groups, kh, kw) in the layout that a primitive has chosen."""
    chosen = new_array((user.bytes_of(dnn.WEIGHTS) // 4,))
    reordering(weight, chosen)
    return chosen


class PoolingKernel(Kernel):
    """The maximum or the mean of the pixels under a window, and its gradient.

    Args:
        images: N, H, W, C.
        kind: ``onednn.MAX``, ``AVERAGE`` (of the pixels) or ``AVERAGE_WITH_PADDING`` (which counts as 0).
        window, stride, padding, dilation: for rows and columns.
    """

    def __init__(
        self, images: Sequence[int], kind: int, window: Pair, stride: Pair, padding: Pair, dilation: Pair
    ) -> None:
        count, height, width, channels = images
        sizes = zip((height, width), window, stride, padding, dilation, strict=True)
        out = ((size + 2 * pad - gap * (w - 1) - 1) // step + 1 for size, w, step, pad, gap in sizes)
        self.shape, self.out_shape = tuple(images), (count, *out, channels)
        x, y, work = _images(self.shape), _images(self.out_shape), _passes(images, 2)
        geometry = stride, window, tuple(gap - 1 for gap in dilation), padding, padding
        kept = [dnn.WORKSPACE] if kind == dnn.MAX else []
        self._forward = Primitive(
            "pooling_forward", (dnn.SRC, dnn.DST, *kept), dnn.TRAINING, kind, x, y, *geometry, work=work
        )
        arguments, parameters = (dnn.DIFF_DST, dnn.DIFF_SRC, *kept), (kind, x, y, *geometry, self._forward)
        self._backward = Primitive("pooling_backward", arguments, *parameters, work=work)
        self._kept = [self._forward.bytes_of(argument) for argument in kept]

    def forward(self, x: Array) -> tuple[Array, Workspace]:
        """Returns the pooled images (N, H', W', C), and what their gradient needs."""
        y, workspace = new_array(self.out_shape), [np.empty(size, np.uint8) for size in self._kept]
        self._forward(x, y, *workspace)
        return y, workspace

    def backward(self, dy: Array, workspace: Workspace) -> Array:
        """Returns the gradient of the images, given that of the result."""
        dx = new_array(self.shape)
        self._backward(dy, dx, *workspace)
        return dx


class BatchNormalizationKernel(Kernel):
    """The normalisation of each channel by a mean and a variance, then times a scale, plus a shift.

    Args:
        images: N, H, W, C.
        epsilon: added to the variance.
        of_images: whether mean and variance are those of the images; otherwise they are given.
        relu: whether a ReLU follows.
    """

    def __init__(self, images: Sequence[int], epsilon: float, of_images: bool, relu: bool) -> None:
        self.shape = tuple(images)
        x, work = _images(self.shape), _passes(images, 3)
        flags = (
            dnn.SCALE_AND_SHIFT + (0 if of_images else dnn.GLOBAL_STATISTICS) + (dnn.WITH_RELU if relu else 0)
        )
        kept = [dnn.WORKSPACE] if relu else []
        given = dnn.SCALE, dnn.MEAN, dnn.VARIANCE
        self._forward = Primitive(
            "batch_normalization_forward",
            (dnn.SRC, dnn.DST, dnn.SHIFT, *given, *kept),
            *(dnn.TRAINING, x, x, epsilon, flags),
            work=work,
        )
        self._backward = Primitive(
            "batch_normalization_backward",
            (dnn.SRC, dnn.DIFF_DST, *given, dnn.DIFF_SRC, dnn.DIFF_SCALE, dnn.DIFF_SHIFT, *kept),
            *(dnn.BACKWARD, x, x, x, epsilon, flags, self._forward),
            work=work,
        )
        self._kept = [self._forward.bytes_of(argument) for argument in kept]

    def forward(
        self, x: Array, scale: Array, shift: Array, mean: Array, variance: Array
    ) -> tuple[Array, Workspace]:
        """Returns the normalised images, and what their gradient needs.

        Args:
            x: the images.
            scale: (C,), as are the others.
            shift: added to the products.
            mean: filled if it is that of the images.
            variance: filled if it is that of the images; over N * H * W, not one less.
        """
        y, workspace = new_array(self.shape), [np.empty(size, np.uint8) for size in self._kept]
        self._forward(x, y, shift, scale, mean, variance, *workspace)
        return y, workspace

    def backward(
        self, dy: Array, x: Array, scale: Array, mean: Array, variance: Array, workspace: Workspace
    ) -> tuple[Array, Array, Array]:
        """Returns the gradients of images, scale and shift, given that of the result."""
        dx, dscale, dshift = new_array(self.shape), new_array(scale.shape), new_array(scale.shape)
        self._backward(x, dy, scale, mean, variance, dx, dscale, dshift, *workspace)
        return dx, dscale, dshift


class ActivationKernel(Kernel):
    """ReLU or hard swish of each number, and its gradient.

    Args:
        shape: of the numbers, any.
        kind: ``onednn.RELU`` or ``onednn.HARDSWISH``.
    """

    def __init__(self, shape: Sequence[int], kind: int) -> None:
        self.shape, size = tuple(shape), math.prod(shape)
        x, work = Description((size,), (0,)), _passes(shape, 2)
        factors = (1 / 6, 0.5) if kind == dnn.HARDSWISH else (0.0, 0.0)
        self._forward = Primitive(
            "eltwise_forward", (dnn.SRC, dnn.DST), dnn.TRAINING, kind, x, x, *factors, work=work
        )
        if kind == dnn.RELU:
            arguments, mask = (dnn.SRC, dnn.SRC_1, dnn.DST), Description((size,), (0,), dnn.BYTE)
            self._backward = Primitive("binary", arguments, dnn.MULTIPLY, x, mask, x, work=work)
        else:
            arguments, parameters = (dnn.DIFF_DST, dnn.SRC, dnn.DIFF_SRC), (kind, x, x, x, *factors)
            self._backward = Primitive("eltwise_backward", arguments, *parameters, self._forward, work=work)

    def forward(self, x: Array) -> Array:
        """Returns the activations."""
        y = new_array(self.shape)
        self._forward(x, y)
        return y

    def backward(self, dy: Array, known: npt.NDArray[Any]) -> Array:
        """Returns the gradient of the numbers.

        Args:
            dy: the gradient of the result.
            known: for a ReLU, which numbers are positive, bool; for a hard swish, its argument.
        """
        dx = new_array(self.shape)
        self._backward(dy, known, dx)
        return dx


class ElementwiseKernel(Kernel):
    """The sum or the product of images and images, or of images and one number for each channel.

    Args:
        images: N, H, W, C.
        kind: ``onednn.ADD`` or ``onednn.MULTIPLY``.
        relu: whether a ReLU follows.
        by_channel: whether the second argument is (N, 1, 1, C) instead of (N, H, W, C).
    """

    def __init__(
        self, images: Sequence[int], kind: int, relu: bool = False, by_channel: bool = False
    ) -> None:
        self.shape = tuple(images)
        x = _images(self.shape)
        y = _images((images[0], 1, 1, images[3])) if by_channel else x
        arguments = dnn.SRC, dnn.SRC_1, dnn.DST
        self._compute = Primitive("binary", arguments, kind, x, y, x, work=_passes(images, 3), relu=relu)

    def __call__(self, x: Array, y: Array) -> Array:
        """Returns the result, (N, H, W, C)."""
        result = new_array(self.shape)
        self._compute(x, y, result)
        return result


class ProductKernel(Kernel):
    """A product of two matrices, of which either may lie in memory as its transpose.

    Args:
        rows, inner, columns: of the matrices.
        transposed: for each of them, whether it is given as its transpose.
        bias: whether a row (columns,) is added to each row of the product.
    """

    def __init__(
        self, rows: int, inner: int, columns: int, transposed: tuple[bool, bool], bias: bool = False
    ) -> None:
        self.shape = rows, columns
        a, b = (
            Description(shape, (1, 0) if is_transposed else (0, 1))
            for shape, is_transposed in zip(((rows, inner), (inner, columns)), transposed, strict=True)
        )
        added, out = Description((1, columns), (0, 1)) if bias else None, Description(self.shape, (0, 1))
        arguments = (dnn.SRC, dnn.WEIGHTS, *([dnn.BIAS] if bias else []), dnn.DST)
        self._multiply = Primitive("matmul", arguments, a, b, added, out, work=2e-5 * rows * inner * columns)

    def __call__(self, a: Array, b: Array, *bias: Array) -> Array:
        """Returns the product, (rows, columns)."""
        out = new_array(self.shape)
        self._multiply(a, b, *bias, out)
        return out


class _Reordering(Kernel):
    """A copy of images in the other layout."""

    def __init__(self, shape: Sequence[int], to_last: bool) -> None:
        given, wanted = Description(shape, range(4)), Description(shape, _LAST)
        pair = (given, wanted) if to_last else (wanted, given)
        self._shape = tuple(shape[axis] for axis in _LAST) if to_last else tuple(shape)
        self._copy = dnn.reordering(*pair, work=_passes(shape, 2))

    def __call__(self, x: Array) -> Array:
        out = new_array(self._shape)
        self._copy(x, out)
        return out


def to_channels_last(x: Array) -> Array:
    """Returns images (N, C, H, W), of any strides, as a contiguous array (N, H, W, C); a copy if need be."""
    view = x.transpose(0, 2, 3, 1)
    if view.flags.c_contiguous:
        return view
    return _Reordering.of(x.shape, True)(np.ascontiguousarray(x))


def to_channels_first(x: Array) -> Array:
    """Returns images (N, H, W, C), of any strides, as a contiguous array (N, C, H, W); a copy if need be."""
    view = x.transpose(0, 3, 1, 2)
    if view.flags.c_contiguous:
        return view
    return _Reordering.of(view.shape, False)(np.ascontiguousarray(x))


def _images(shape: Sequence[int]) -> Description:
    count, height, width, channels = shape
    return Description((count, channels, height, width), _LAST)


def _passes(shape: Sequence[int], count: int) -> float:
    """Returns the microseconds that one core takes to go over an array some times, at 10 GB/s."""
    return 4e-4 * math.prod(shape) * count
