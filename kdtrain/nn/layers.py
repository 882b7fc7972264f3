"""Layers with the parameters of OneFlow's own, where OneFlow 0.9.0's are slow or wrong.

On a CPU they compute with oneDNN. Images may lie in memory as (N, C, H, W), as OneFlow's own do, or as
(N, H, W, C), "channels last", which saves copies between layers. Their shape is (N, C, H, W) in both cases.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from kdtrain.errors import UsageError, size_text
from kdtrain.nn import onednn, operations
from kdtrain.nn.operations import is_channels_last, runs_in_numpy, runs_in_onednn, small_in_numpy
from kdtrain.runtime import flow

F = flow.nn.functional

_LARGE_PRODUCT = 1 << 25  # multiply-adds. OneFlow's own operations are faster on what is smaller.
_LARGE_TENSOR = 1 << 16  # numbers


def channels_last(x: flow.Tensor) -> flow.Tensor:
    """Returns images (N, C, H, W) that lie in memory as (N, H, W, C); unchanged where oneDNN is not used."""
    if is_channels_last(x) or not runs_in_onednn(x):
        return x
    count, channels, height, width = x.shape
    if channels == 1:
        return x.reshape(count, height, width, 1).permute(0, 3, 1, 2)
    return operations.Reordering(to_last=True).apply(x).permute(0, 3, 1, 2)


def channels_first(x: flow.Tensor) -> flow.Tensor:
    """Returns images (N, C, H, W) that lie in memory in that order, as OneFlow's operations want them."""
    if not is_channels_last(x):
        return x
    return (
        operations.Reordering(to_last=False).apply(x.permute(0, 2, 3, 1))
        if runs_in_onednn(x)
        else x.contiguous()
    )


def relu(x: flow.Tensor) -> flow.Tensor:
    """Returns the positive part of each number, (...) float32."""
    if _has_own_relu(x):
        return operations.Activation(onednn.RELU).apply(x)
    return F.relu(x)


def _has_own_relu(x: flow.Tensor) -> bool:
    return (is_channels_last(x) or x.numel() >= _LARGE_TENSOR) and runs_in_onednn(x)


def relu_of(layer: flow.nn.Module, x: flow.Tensor) -> flow.Tensor:
    """Returns ``relu(layer(x))``: in one pass over the memory, unless a hook watches the layer's own result.

    Args:
        layer: a convolution, a batch normalisation or a linear layer is fused with the ReLU.
        x: images (N, C, H, W), or rows (N, D).
    """
    if isinstance(layer, Linear):
        return linear_layers(x, [layer], [True])
    if isinstance(layer, (Conv2d, BatchNorm2d)) and not layer._forward_hooks:
        return layer(x, relu=True)
    return relu(layer(x))


def linear_layers(x: flow.Tensor, layers: Sequence[Linear], relus: Sequence[bool]) -> flow.Tensor:
    """Returns the result of linear layers in a row, (N, D) to (N, D').

    They are one operation, unless a hook watches one of them.

    Args:
        x: rows.
        layers: the layers.
        relus: for each of them, whether a ReLU follows.
    """
    is_fast = x.ndim == 2 and small_in_numpy(x) and runs_in_onednn(x) and x.shape[1] == layers[0].in_features
    if is_fast and all(map(_is_plain_linear, layers)):
        parameters = [parameter for layer in layers for parameter in (layer.weight, layer.bias)]
        return operations.LinearLayers(relus).apply(x, *parameters)
    for layer, has_relu in zip(layers, relus, strict=True):
        x = relu(layer(x)) if has_relu else layer(x)
    return x


def _is_plain_linear(layer: flow.nn.Module) -> bool:
    """Returns whether a layer is a ``Linear`` with a bias that no hook watches."""
    watched = layer._forward_hooks or layer._forward_pre_hooks
    return type(layer) is Linear and layer.bias is not None and not watched


def fork(x: flow.Tensor) -> tuple[flow.Tensor, flow.Tensor]:
    """Returns images (N, C, H, W) twice, for two branches of a network; it is fast in both layouts."""
    return operations.Fork().apply(x) if is_channels_last(x) and runs_in_onednn(x) else (x, x)


def add(a: flow.Tensor, b: flow.Tensor, *, relu: bool = False) -> flow.Tensor:
    """Returns the sum of images (N, C, H, W), or its positive part."""
    if not runs_in_onednn(a):
        return F.relu(a + b) if relu else a + b
    return operations.Sum(relu).apply(a, _like(a, b))


def scale(x: flow.Tensor, factors: flow.Tensor) -> flow.Tensor:
    """Returns images (N, C, H, W) times a factor for each channel, (N, C, 1, 1)."""
    if not runs_in_onednn(x):
        return x * factors
    return operations.ChannelScaling().apply(x, factors)


def halves(x: flow.Tensor) -> tuple[flow.Tensor, flow.Tensor]:
    """Returns the first half of the channels of images (N, C, H, W), and the second."""
    first, second = operations.Halves().apply(x) if runs_in_onednn(x) else x.chunk(2, dim=1)
    return first, second


def interleave(a: flow.Tensor, b: flow.Tensor) -> flow.Tensor:
    """Returns the channels of two images (N, C, H, W) in turn: the first of each, the second of each, ..."""
    if not runs_in_onednn(a):
        count, channels, height, width = a.shape
        pairs = flow.cat([a, b], dim=1).reshape(count, 2, channels, height, width)
        return pairs.transpose(1, 2).reshape(count, 2 * channels, height, width)
    return operations.Interleaving().apply(a, _like(a, b))


def subsample(x: flow.Tensor, stride: int, new_channels: int) -> flow.Tensor:
    """Returns every other pixel of images (N, C, H, W), and new channels of zeros after theirs."""
    if not runs_in_onednn(x):
        x = x[:, :, ::stride, ::stride]
        zeros = flow.zeros(len(x), new_channels, *x.shape[2:], dtype=x.dtype, device=x.device)
        return flow.cat([x, zeros], dim=1)
    return operations.Subsampling(stride, new_channels).apply(x)


def max_pool2d(x: flow.Tensor) -> flow.Tensor:
    """Returns the largest of each 2x2 pixels, (N, C, H, W) to (N, C, H // 2, W // 2)."""
    return (
        operations.Pooling(onednn.MAX, (2, 2), (2, 2), (0, 0)).apply(x)
        if runs_in_onednn(x)
        else F.max_pool2d(x, 2)
    )


def mean_over_pixels(x: flow.Tensor) -> flow.Tensor:
    """Returns the mean of each channel, (N, C, H, W) to (N, C)."""
    if not runs_in_onednn(x):
        return x.mean(dim=(2, 3))
    size = tuple(x.shape[2:])
    return flow.flatten(operations.Pooling(onednn.AVERAGE, size, size, (0, 0)).apply(x), 1)


def _like(a: flow.Tensor, b: flow.Tensor) -> flow.Tensor:
    """Returns images ``b`` in the layout of images ``a``."""
    return channels_last(b) if is_channels_last(a) else channels_first(b)


class ImageLayer:
    """A layer that takes images in both layouts. Where oneDNN computes it, the result has the argument's."""


class Conv2d(ImageLayer, flow.nn.Conv2d):
    """OneFlow's convolution, by oneDNN."""

    def forward(self, x: flow.Tensor, relu: bool = False) -> flow.Tensor:
        """Returns the convolved images, (N, C, H, W) to (N, C', H', W'), or their positive part."""
        stride, padding, dilation = map(_pair, (self.stride, self.padding, self.dilation))
        padded = [size + 2 * pad for size, pad in zip(x.shape[2:], padding, strict=False)]
        spanned = [gap * (size - 1) + 1 for size, gap in zip(_pair(self.kernel_size), dilation, strict=True)]
        if any(span > size for span, size in zip(spanned, padded, strict=False)):
            raise ValueError(
                f"this convolution spans {size_text(spanned)} pixels, more than its images have, "
                f"{size_text(padded)} with the padding"
            )
        if not runs_in_onednn(x) or x.shape[1] != self.in_channels:  # OneFlow says what is wrong
            y = super().forward(channels_first(x))
            return F.relu(y) if relu else y
        bias = [] if self.bias is None else [self.bias]
        return operations.Convolution(stride, padding, dilation, self.groups, relu).apply(
            x, self.weight, *bias
        )


class MaxPool2d(ImageLayer, flow.nn.MaxPool2d):
    """OneFlow's max pooling, by oneDNN."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the largest pixels, (N, C, H, W) to (N, C, H', W')."""
        geometry = tuple(map(_pair, (self.kernel_size, self.stride, self.padding, self.dilation)))
        if not runs_in_onednn(x) or self.ceil_mode or self.return_indices:
            return super().forward(channels_first(x))
        return operations.Pooling(onednn.MAX, *geometry).apply(x)


class AvgPool2d(ImageLayer, flow.nn.AvgPool2d):
    """OneFlow's average pooling, by oneDNN."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the means, (N, C, H, W) to (N, C, H', W')."""
        if not runs_in_onednn(x) or self.ceil_mode or self.divisor_override:
            return super().forward(channels_first(x))
        kind = onednn.AVERAGE_WITH_PADDING if self.count_include_pad else onednn.AVERAGE
        geometry = map(_pair, (self.kernel_size, self.stride, self.padding))
        return operations.Pooling(kind, *geometry).apply(x)


class AdaptiveAvgPool2d(ImageLayer, flow.nn.AdaptiveAvgPool2d):
    """OneFlow's adaptive average pooling, by oneDNN where all windows are equal."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the means, (N, C, H, W) to (N, C, H', W') of the layer's output size."""
        sizes = x.shape[2:]
        out = [size or whole for size, whole in zip(_pair(self.output_size), sizes, strict=True)]
        if not runs_in_onednn(x) or any(whole % size for size, whole in zip(out, sizes, strict=True)):
            return super().forward(channels_first(x))
        window = tuple(whole // size for size, whole in zip(out, sizes, strict=True))
        return operations.Pooling(onednn.AVERAGE, window, window, (0, 0)).apply(x)


class BatchNorm1d(flow.nn.BatchNorm1d):
    """OneFlow's layer, with an error for a channel of one value, which OneFlow turns into NaN."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the normalised features, (N, C) or (N, C, L)."""
        _check_values(self, x)
        return super().forward(x)


class BatchNorm2d(ImageLayer, flow.nn.BatchNorm2d):
    """OneFlow's layer for images, by oneDNN, with the error of ``BatchNorm1d``."""

    def forward(self, x: flow.Tensor, relu: bool = False) -> flow.Tensor:
        """Returns the normalised images, (N, C, H, W), or their positive part."""
        _check_values(self, x)
        has_all = self.affine and self.track_running_stats and self.momentum
        if not (has_all and runs_in_onednn(x) and x.shape[1] == self.num_features):
            y = super().forward(channels_first(x))
            return F.relu(y) if relu else y
        running = self.running_mean.to_numpy(), self.running_var.to_numpy()  # views of the buffers' memory
        moments = tuple(map(np.empty_like, running)) if self.training else running
        mean, variance = moments
        normalization = operations.BatchNormalization(self.eps, mean, variance, self.training, relu)
        y = normalization.apply(x, self.weight, self.bias)
        if self.training:
            values = x.numel() // x.shape[1]
            for average, moment, factor in zip(running, moments, (1, values / (values - 1)), strict=True):
                average *= 1 - self.momentum
                average += self.momentum * factor * moment
            tracked = self.num_batches_tracked.to_numpy()  # a view, too: OneFlow's addition takes longer
            tracked += 1
        return y


def _check_values(layer: flow.nn.Module, x: flow.Tensor) -> None:
    if layer.training and x.numel() == x.shape[1]:
        raise UsageError(
            "a batch of one image cannot be trained on: a batch normalisation of this network sees a single "
            "value in each channel. Give each process at least 2 images: --batch-size, --limit-train."
        )


class ReLU(ImageLayer, flow.nn.ReLU):
    """OneFlow's ReLU, by oneDNN."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the positive parts, in the shape of ``x``."""
        y = relu(x)  # the network may change the result, which OneFlow's own ReLU needs for its gradient
        return y.clone() if y.requires_grad and runs_in_numpy(y) and not _has_own_relu(x) else y


def is_plain_relu(layer: flow.nn.Module) -> bool:
    """Returns whether a layer is a ReLU that no hook watches, so that it may be fused."""
    return isinstance(layer, ReLU) and not (layer._forward_hooks or layer._forward_pre_hooks)


class Hardswish(ImageLayer, flow.nn.Hardswish):
    """OneFlow's hard swish, by oneDNN."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns x * min(max(x + 3, 0), 6) / 6, in the shape of ``x``."""
        if not runs_in_onednn(x):
            return super().forward(x)
        return operations.Activation(onednn.HARDSWISH).apply(x)


class ElementwiseLayer(ImageLayer):
    """A base class beside a layer of OneFlow's that treats each number alone, so in any layout."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the result, in the shape of ``x``."""
        layer: Any = super()
        if not is_channels_last(x):
            return layer.forward(x)
        return layer.forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Sequential(ImageLayer, flow.nn.Sequential):
    """OneFlow's sequence of layers, in which images stay channels last as long as the layers take that."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the result of the last layer; images have the layout of ``x``."""
        was_last, layers = _is_images(x) and is_channels_last(x), list(self)
        while layers:
            layer = layers.pop(0)
            if _is_images(x):
                x = channels_last(x) if isinstance(layer, ImageLayer) else channels_first(x)
            if _is_plain_linear(layer) and not _is_images(x):
                run = [layer]
                relus = [_take_relu(layers)]
                while layers and _is_plain_linear(layers[0]):
                    run.append(layers.pop(0))
                    relus.append(_take_relu(layers))
                x = linear_layers(x, run, relus)
                continue
            # A network may change the result of a last ReLU. The gradient needs it, except after these two.
            is_fusable = len(layers) > 1 or isinstance(layer, (Conv2d, BatchNorm2d))
            if layers and is_plain_relu(layers[0]) and is_fusable:
                layers.pop(0)
                x = relu_of(layer, x)
            else:
                x = layer(x)
        return channels_first(x) if _is_images(x) and not was_last else x


def _take_relu(layers: list[flow.nn.Module]) -> bool:
    """Removes a ReLU that may be fused from the beginning of a list; returns whether there is one."""
    is_next = bool(layers) and is_plain_relu(layers[0])
    if is_next:
        layers.pop(0)
    return is_next


class Linear(flow.nn.Linear):
    """OneFlow's linear layer, whose large products oneDNN computes."""

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the products, (..., D) to (..., D')."""
        is_large = x.numel() * self.out_features >= _LARGE_PRODUCT and x.shape[-1] == self.in_features
        if not (is_large and runs_in_onednn(x)):
            return super().forward(x)
        bias = [] if self.bias is None else [self.bias]
        return operations.LinearProduct().apply(x, self.weight, *bias)


class Dropout(ImageLayer, flow.nn.Module):
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
        if is_channels_last(x):
            return self.forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return operations.DropoutMask(self.p).apply(x) if runs_in_numpy(x) else F.dropout(x, self.p)

    def extra_repr(self) -> str:
        """Returns the text of this layer in ``print(model)``."""
        return f"p={self.p}"


def _is_images(x: object) -> bool:
    return isinstance(x, flow.Tensor) and x.ndim == 4  # layers of users' may return several tensors


def _pair(value: Any) -> tuple[int, int]:
    return tuple(value) if isinstance(value, (tuple, list)) else (value, value)
