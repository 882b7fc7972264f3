"""Layers with the parameters of OneFlow's own, where OneFlow 0.9.0's are slow or wrong."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdtrain.runtime import flow

F = flow.nn.functional


class Conv2d(flow.nn.Conv2d):
    """OneFlow's convolution, with the same parameters and numbers, made fast for the CPU.

    OneFlow's own collects the pixels under the kernel one by one, in the backward pass once more,
    and adds its bias in a reference loop that takes longer than all the rest.
    """

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the convolved images, (N, C, H, W) to (N, C', H', W')."""
        if x.is_cuda:
            return super().forward(x)
        bias = flow.zeros(self.out_channels) if self.bias is None else self.bias
        if self.groups == 1 and set(self.stride) == {1} and set(self.dilation) == {1}:
            down, right = self.padding
            if down or right:
                x = F.pad(x, (right, right, down, down))
            return _Convolution.apply(x, self.weight, bias)
        y = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        return y + bias.reshape(1, -1, 1, 1)


class _Convolution(flow.autograd.Function):
    """A convolution as one matrix product per image.

    The matrix ``columns`` (K, H' * W') holds, for each place of the kernel, the K = kh * kw * C
    pixels under it, and a 1 for the bias.
    """

    @staticmethod
    def forward(context: Any, x: flow.Tensor, weight: flow.Tensor, bias: flow.Tensor) -> flow.Tensor:
        """Returns images (N, C', H', W') of ``x`` (N, C, H, W) and ``weight`` (C', C, kh, kw)."""
        count, _, height, width = x.shape
        channels, _, *kernel = weight.shape
        height, width = height - kernel[0] + 1, width - kernel[1] + 1
        under_kernel = [
            x[:, :, i : i + height, j : j + width] for i in range(kernel[0]) for j in range(kernel[1])
        ]
        ones = flow.ones(count, 1, height, width)
        columns = flow.cat([*under_kernel, ones], dim=1).reshape(count, -1, height * width)
        matrix = flow.cat([weight.permute(0, 2, 3, 1).reshape(channels, -1), bias.reshape(-1, 1)], dim=1)
        context.save_for_backward(columns, matrix)
        context.shapes = x.shape, weight.shape
        return flow.matmul(matrix, columns).reshape(count, channels, height, width)

    @staticmethod
    def backward(context: Any, dy: flow.Tensor) -> tuple[flow.Tensor, flow.Tensor, flow.Tensor]:
        """Returns the gradients of images, weight and bias for that of the output."""
        columns, matrix = context.saved_tensors
        images, (out_channels, in_channels, *kernel) = context.shapes
        height, width = dy.shape[2:]
        dy = dy.reshape(images[0], out_channels, height * width)
        dmatrix = flow._C.batch_matmul(dy, columns, False, True).sum(0)  # matmul would transpose first: slow
        dcolumns = flow.matmul(matrix[:, :-1].T.contiguous(), dy).numpy()
        dcolumns = dcolumns.reshape(images[0], *kernel, in_channels, height, width)
        dx = np.zeros(images, np.float32)
        for i, j in np.ndindex(*kernel):
            dx[:, :, i : i + height, j : j + width] += dcolumns[:, i, j]
        dweight = dmatrix[:, :-1].reshape(out_channels, *kernel, in_channels).permute(0, 3, 1, 2)
        return flow.from_numpy(dx), dweight.contiguous(), dmatrix[:, -1].contiguous()


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
        return F.dropout(x, self.p, self.training)

    def extra_repr(self) -> str:
        """Returns what ``print(model)`` shows of this layer."""
        return f"p={self.p}"
