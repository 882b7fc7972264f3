"""Operations as nodes of OneFlow's autograd graph: the kernels of ``kernels.py``, and dropout in NumPy."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from kdtrain.nn import kernels, onednn
from kdtrain.nn.kernels import Pair
from kdtrain.nn.onednn import Array
from kdtrain.runtime import flow
from kdtrain.runtime.ranks import rank

_is_fork = False


def _enter_child() -> None:
    global _is_fork
    _is_fork = True


os.register_at_fork(after_in_child=_enter_child)


def runs_in_numpy(x: flow.Tensor) -> bool:
    """Returns whether NumPy can read a tensor: it is neither on a GPU nor part of a traced graph."""
    return not (x.is_cuda or x.is_lazy)


def small_in_numpy(x: flow.Tensor) -> bool:
    """Returns whether NumPy is fast for a small tensor, too.

    A forked process computes in the calling thread. Any other waits for OneFlow's threads each time that it
    reads a tensor. Where these share a core with it, as in processes that train together, a step of a small
    network takes 2 to 4 times as long.
    """
    return runs_in_numpy(x) and (_is_fork or not _shares_a_core())


def _shares_a_core() -> bool:
    return rank() is not None or onednn.available_threads() == 1


def runs_in_onednn(x: flow.Tensor) -> bool:
    """Returns whether oneDNN computes with a tensor: its numbers are float32, and it is not empty."""
    return runs_in_numpy(x) and x.dtype == flow.float32 and x.numel() > 0 and onednn.is_usable()


def is_channels_last(x: flow.Tensor) -> bool:
    """Returns whether images (N, C, H, W) lie in memory as (N, H, W, C)."""
    return bool(x.ndim == 4 and x.stride()[1] == 1 and x.shape[2] * x.shape[3] > 1)


class Node:
    """An operation with its own backward pass, for one call; attributes hold what that pass needs.

    ``flow.autograd.Function`` holds it in a context instead, whose attributes lose a reference each
    time they are read, until their memory is freed while it is in use.
    """

    observer: ClassVar[Callable[[Node], None] | None] = None  # is called with each that has a gradient
    has_gradient = True  # whether the backward pass will be wanted: not in an evaluation

    def apply(self, *inputs: flow.Tensor) -> Any:
        """Returns the result, or several, as a node of autograd's graph."""
        self.has_gradient = flow.is_grad_enabled()

        def forward(context: object, *inputs: flow.Tensor) -> Any:
            return self.forward(*inputs)

        def backward(context: object, *gradients: flow.Tensor) -> Any:
            return self.backward(*gradients)

        function = flow._oneflow_internal.autograd.AutogradFunctionBase
        result = function.apply(type(self).__name__, forward, backward, *inputs)
        if Node.observer is not None and self.has_gradient:
            Node.observer(self)
        return result

    def mask(self, y: Array, relu: bool) -> npt.NDArray[np.bool_] | None:
        """Returns where the result of a ReLU is positive, for its gradient; None if there is no ReLU.

        It is kept because the network may change the result.
        """
        return y > 0 if relu and self.has_gradient else None

    def forward(self, *inputs: Any) -> Any:
        """Returns the result, float32; the subclass states the shapes of inputs and result."""
        raise NotImplementedError

    def backward(self, *gradients: Any) -> Any:
        """Returns the gradient of each input, in the input's shape, given that of each result."""
        raise NotImplementedError


class ImageNode(Node):
    """An operation on images (N, C, H, W), whose results have the layout of the first argument.

    OneFlow copies an argument of such an operation that is not contiguous, and it takes long. So images
    that lie in memory as (N, H, W, C) enter and leave in that shape, as views.

    Attributes:
        images: how many arguments, the first ones, are images; their layout is the same.
    """

    images: ClassVar[int] = 1

    def apply(self, *inputs: flow.Tensor) -> Any:
        """As in ``Node``."""
        self.last = is_channels_last(inputs[0])
        if not self.last:
            return super().apply(*inputs)
        views = (x.permute(0, 2, 3, 1) for x in inputs[: self.images])
        result = super().apply(*views, *inputs[self.images :])
        if isinstance(result, flow.Tensor):
            return result.permute(0, 3, 1, 2)
        return [y.permute(0, 3, 1, 2) for y in result]

    def read(self, x: flow.Tensor) -> Array:
        """Returns an argument, or the gradient of a result, as a contiguous array (N, H, W, C)."""
        return self.as_last(x.to_numpy())

    def as_last(self, x: Array) -> Array:
        """Returns an argument's array so; a backward pass makes the copy again rather than keep it."""
        return kernels.to_channels_last(x.transpose(0, 3, 1, 2) if self.last else x)

    def result(self, y: Array) -> flow.Tensor:
        """Returns a result, or the gradient of an argument, given as such an array."""
        return flow.from_numpy(y if self.last else kernels.to_channels_first(y))


class Reordering(Node):
    """Images (N, C, H, W) as (N, H, W, C), or the other way.

    Args:
        to_last: whether the channels come last.
    """

    def __init__(self, to_last: bool) -> None:
        orders = kernels.to_channels_last, kernels.to_channels_first
        self.order, self.back = orders if to_last else orders[::-1]

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the copy."""
        return flow.from_numpy(self.order(x.to_numpy()))

    def backward(self, dy: flow.Tensor) -> flow.Tensor:
        """Returns the gradient, in the order of the argument."""
        return flow.from_numpy(self.back(dy.to_numpy()))


class Convolution(ImageNode):
    """A convolution of images (N, C, H, W) with weights (C', C / groups, kh, kw), plus a bias (C',) or none.

    Args:
        stride, padding, dilation: for rows and columns.
        groups: the number of parts of the channels that are convolved separately.
        relu: whether a ReLU follows.
    """

    def __init__(self, stride: Pair, padding: Pair, dilation: Pair, groups: int, relu: bool) -> None:
        self.geometry = stride, padding, dilation, groups
        self.relu = relu

    def forward(self, x: flow.Tensor, weight: flow.Tensor, *bias: flow.Tensor) -> flow.Tensor:
        """Returns the convolved images."""
        self.x, self.weight, self.image_wanted = x.to_numpy(), weight.to_numpy(), x.requires_grad
        images = self.as_last(self.x)
        self.kernel = kernels.ConvolutionKernel.of(
            images.shape, self.weight.shape, *self.geometry, bool(bias), self.relu
        )
        y = self.kernel.forward(images, self.weight, *(b.to_numpy() for b in bias))
        self.positive = self.mask(y, self.relu)
        del images  # before another copy is made
        return self.result(y)

    def backward(self, dy: flow.Tensor) -> tuple[flow.Tensor | None, ...]:
        """Returns the gradients of images (None if they need none), weights and bias."""
        gradient = _through_relu(self.read(dy), self.positive)
        others = self.kernel.gradients_of_weights(gradient, self.as_last(self.x))
        dx = self.kernel.gradient_of_images(gradient, self.weight) if self.image_wanted else None
        del gradient
        return (None if dx is None else self.result(dx), *map(flow.from_numpy, others))


class Pooling(ImageNode):
    """The maximum or the mean of the pixels under a window.

    Args:
        kind: as in ``kernels.PoolingKernel``.
        window, stride, padding, dilation: for rows and columns.
    """

    def __init__(self, kind: int, window: Pair, stride: Pair, padding: Pair, dilation: Pair = (1, 1)) -> None:
        self.parameters = kind, window, stride, padding, dilation

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the pooled images, (N, C, H', W')."""
        images = self.read(x)
        self.kernel = kernels.PoolingKernel.of(images.shape, *self.parameters)
        y, self.workspace = self.kernel.forward(images)
        return self.result(y)

    def backward(self, dy: flow.Tensor) -> flow.Tensor:
        """Returns the gradient of the images."""
        return self.result(self.kernel.backward(self.read(dy), self.workspace))


class BatchNormalization(ImageNode):
    """The normalisation of each channel.

    Args:
        epsilon: added to the variance.
        mean, variance: (C,) float32 each.
        of_images: whether both are filled with those of the images (the variance over N * H * W, not one
            less), or given.
        relu: whether a ReLU follows.
    """

    def __init__(self, epsilon: float, mean: Array, variance: Array, of_images: bool, relu: bool) -> None:
        self.parameters = epsilon, of_images, relu
        self.moments = mean, variance

    def forward(self, x: flow.Tensor, scale: flow.Tensor, shift: flow.Tensor) -> flow.Tensor:
        """Returns the normalised images, times a scale (C,), plus a shift (C,)."""
        self.x, self.scale = x.to_numpy(), scale.to_numpy()
        images = self.as_last(self.x)
        self.kernel = kernels.BatchNormalizationKernel.of(images.shape, *self.parameters)
        y, self.workspace = self.kernel.forward(images, self.scale, shift.to_numpy(), *self.moments)
        return self.result(y)

    def backward(self, dy: flow.Tensor) -> tuple[flow.Tensor, ...]:
        """Returns the gradients of images, scale and shift."""
        given = self.as_last(self.x), self.scale, *self.moments, self.workspace
        dx, dscale, dshift = self.kernel.backward(self.read(dy), *given)
        return self.result(dx), flow.from_numpy(dscale), flow.from_numpy(dshift)


class Activation(ImageNode):
    """ReLU or hard swish of a tensor of any shape.

    Args:
        kind: ``onednn.RELU`` or ``onednn.HARDSWISH``.
    """

    def __init__(self, kind: int) -> None:
        self.kind = kind

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the activations."""
        numbers = x.to_numpy()
        self.kernel = kernels.ActivationKernel.of(numbers.shape, self.kind)
        y = self.kernel.forward(numbers)
        self.known: Any = self.mask(y, True) if self.kind == onednn.RELU else numbers
        return flow.from_numpy(y)

    def backward(self, dy: flow.Tensor) -> flow.Tensor:
        """Returns the gradient of the numbers."""
        return flow.from_numpy(self.kernel.backward(np.ascontiguousarray(dy.to_numpy()), self.known))


class Fork(ImageNode):
    """Images twice, for two branches of a network.

    OneFlow adds the gradients of two users of images by itself, but makes slow copies of both if they are
    not contiguous.
    """

    def forward(self, x: flow.Tensor) -> tuple[flow.Tensor, flow.Tensor]:
        """Returns the images twice."""
        return x.detach(), x.detach()

    def backward(self, da: flow.Tensor, db: flow.Tensor) -> flow.Tensor:
        """Returns the sum of the gradients."""
        a, b = self.read(da), self.read(db)
        return self.result(kernels.ElementwiseKernel.of(a.shape, onednn.ADD)(a, b))


class Sum(ImageNode):
    """The sum of images.

    Args:
        relu: whether a ReLU follows.
    """

    images = 2

    def __init__(self, relu: bool) -> None:
        self.relu = relu

    def forward(self, a: flow.Tensor, b: flow.Tensor) -> flow.Tensor:
        """Returns the sum, in the shape of both."""
        x, y = self.read(a), self.read(b)
        total = kernels.ElementwiseKernel.of(x.shape, onednn.ADD, self.relu)(x, y)
        self.positive = self.mask(total, self.relu)
        return self.result(total)

    def backward(self, dy: flow.Tensor) -> tuple[flow.Tensor, flow.Tensor]:
        """Returns the gradient of both, which is the same."""
        gradient = _through_relu(self.read(dy), self.positive)
        shared = self.result(gradient)
        return shared, shared.detach()


class ChannelScaling(ImageNode):
    """Images (N, C, H, W) times a factor for each channel (N, C, 1, 1)."""

    images = 2

    def forward(self, x: flow.Tensor, factors: flow.Tensor) -> flow.Tensor:
        """Returns the products, (N, C, H, W)."""
        self.x, self.factors = self.read(x), self.read(factors)
        self.kernel = kernels.ElementwiseKernel.of(self.x.shape, onednn.MULTIPLY, False, True)
        return self.result(self.kernel(self.x, self.factors))

    def backward(self, dy: flow.Tensor) -> tuple[flow.Tensor, flow.Tensor]:
        """Returns the gradients of images and factors."""
        gradient = self.read(dy)
        dfactors = np.einsum("nhwc,nhwc->nc", gradient, self.x)[:, None, None]
        return self.result(self.kernel(gradient, self.factors)), self.result(dfactors)


class Halves(ImageNode):
    """The first half of the channels, and the second."""

    def forward(self, x: flow.Tensor) -> tuple[flow.Tensor, flow.Tensor]:
        """Returns images (N, C, H, W) as two of (N, C / 2, H, W)."""
        first, second = np.split(self.read(x), 2, axis=3)
        return self.result(np.ascontiguousarray(first)), self.result(np.ascontiguousarray(second))

    def backward(self, da: flow.Tensor, db: flow.Tensor) -> flow.Tensor:
        """Returns the gradient of the images."""
        return self.result(np.concatenate([self.read(da), self.read(db)], axis=3))


class Interleaving(ImageNode):
    """The channels of two images in turn: the first of each, the second of each, and so on."""

    images = 2

    def forward(self, a: flow.Tensor, b: flow.Tensor) -> flow.Tensor:
        """Returns images (N, 2 C, H, W) of two of (N, C, H, W)."""
        pairs = np.stack([self.read(a), self.read(b)], axis=4)
        return self.result(pairs.reshape(*pairs.shape[:3], -1))

    def backward(self, dy: flow.Tensor) -> tuple[flow.Tensor, flow.Tensor]:
        """Returns the gradient of both."""
        gradient = self.read(dy)
        a, b = (self.result(np.ascontiguousarray(gradient[..., start::2])) for start in (0, 1))
        return a, b


class Subsampling(ImageNode):
    """Every other pixel, and new channels of zeros after those of the images.

    Args:
        stride: from one pixel to the next, in rows and columns.
        new_channels: how many channels are added.
    """

    def __init__(self, stride: int, new_channels: int) -> None:
        self.stride, self.new_channels = stride, new_channels

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns images (N, C + new_channels, ceil(H / stride), ceil(W / stride)) of images (N, C, H, W)."""
        images = self.read(x)
        self.shape, kept = images.shape, images[:, :: self.stride, :: self.stride]
        y = np.zeros((*kept.shape[:3], kept.shape[3] + self.new_channels), np.float32)
        y[..., : kept.shape[3]] = kept
        return self.result(y)

    def backward(self, dy: flow.Tensor) -> flow.Tensor:
        """Returns the gradient of the images."""
        dx = np.zeros(self.shape, np.float32)
        dx[:, :: self.stride, :: self.stride] = self.read(dy)[..., : self.shape[3]]
        return self.result(dx)


class LinearProduct(Node):
    """A product of rows (..., D) with weights (D', D), and with a bias (D',) or none."""

    def forward(self, x: flow.Tensor, weight: flow.Tensor, *bias: flow.Tensor) -> flow.Tensor:
        """Returns the products, (..., D')."""
        self.x, self.weight = x.to_numpy(), weight.to_numpy()
        self.rows, self.has_bias, self.x_wanted = self.x.reshape(-1, x.shape[-1]), bool(bias), x.requires_grad
        size = *self.rows.shape, len(self.weight)
        product = kernels.ProductKernel.of(*size, (False, True), self.has_bias)
        y = product(self.rows, self.weight, *(b.to_numpy() for b in bias))
        return flow.from_numpy(y.reshape(*self.x.shape[:-1], -1))

    def backward(self, dy: flow.Tensor) -> tuple[flow.Tensor | None, ...]:
        """Returns the gradients of the rows (None if they need none), weights and bias."""
        gradient = np.ascontiguousarray(dy.to_numpy()).reshape(len(self.rows), -1)
        (count, inner), out, dx = self.rows.shape, len(self.weight), None
        if self.x_wanted:
            drows = kernels.ProductKernel.of(count, out, inner, (False, False))(gradient, self.weight)
            dx = flow.from_numpy(drows.reshape(self.x.shape))
        dweight = kernels.ProductKernel.of(out, count, inner, (True, False))(gradient, self.rows)
        return (dx, flow.from_numpy(dweight), *([flow.from_numpy(gradient.sum(0))] if self.has_bias else []))


class LinearLayers(Node):
    """Linear layers in a row, some with a ReLU behind them.

    Args:
        relus: for each layer, whether a ReLU follows.
    """

    def __init__(self, relus: Sequence[bool]) -> None:
        self.relus = tuple(relus)

    def forward(self, x: flow.Tensor, *parameters: flow.Tensor) -> flow.Tensor:
        """Returns the last layer's result, (N, D').

        Args:
            x: rows, (N, D).
            parameters: the weights (D', D) and the bias (D',) of each layer in turn.
        """
        arrays = [parameter.to_numpy() for parameter in parameters]
        self.weights, self.x_wanted = arrays[::2], x.requires_grad
        self.rows, y = [], x.to_numpy()  # the argument of each layer
        for weight, bias, relu in zip(self.weights, arrays[1::2], self.relus, strict=True):
            self.rows.append(y)
            size = *y.shape, len(weight)
            y = kernels.ProductKernel.of(*size, (False, True), True)(y, weight, bias)
            if relu:
                np.maximum(y, 0, out=y)  # keeps NaN, of which oneDNN's makes 0
        self.positive = self.mask(y, self.relus[-1])
        return flow.from_numpy(y)

    def backward(self, dy: flow.Tensor) -> tuple[flow.Tensor | None, ...]:
        """Returns the gradients of the rows (None if they need none), and of all weights and biases."""
        gradient = _through_relu(np.ascontiguousarray(dy.to_numpy()), self.positive)
        gradients: list[flow.Tensor | None] = []
        with np.errstate(all="ignore"):  # a number that is not finite shows in the next loss
            for number in reversed(range(len(self.weights))):
                weight, rows = self.weights[number], self.rows[number]
                (count, inner), out = rows.shape, len(weight)
                dweight = kernels.ProductKernel.of(out, count, inner, (True, False))(gradient, rows)
                gradients[:0] = flow.from_numpy(dweight), flow.from_numpy(gradient.sum(0))
                if number or self.x_wanted:
                    gradient = kernels.ProductKernel.of(count, out, inner, (False, False))(gradient, weight)
                if number and self.relus[number - 1]:
                    gradient *= rows > 0
        return (flow.from_numpy(gradient) if self.x_wanted else None, *gradients)


class DropoutMask(Node):
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


def _through_relu(gradient: Array, positive: npt.NDArray[np.bool_] | None) -> Array:
    """Returns the gradient before a ReLU, whose result is positive there; unchanged without a ReLU."""
    if positive is None:
        return gradient
    return kernels.ActivationKernel.of(gradient.shape, onednn.RELU).backward(gradient, positive)
