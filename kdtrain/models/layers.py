"""Layers with the parameters of OneFlow's own, where OneFlow 0.9.0's are slow or wrong."""

from __future__ import annotations

from kdtrain.runtime import flow

F = flow.nn.functional


class Conv2d(flow.nn.Conv2d):
    """OneFlow's convolution with the bias added by a broadcast.

    The bias inside ``nn.Conv2d`` goes through a reference loop on the CPU: for a batch of 128 it
    costs 280 ms where this addition costs 3. Same parameters, same numbers.
    """

    def forward(self, x: flow.Tensor) -> flow.Tensor:
        """Returns the convolved images, (N, C, H, W) to (N, C', H', W')."""
        y = F.conv2d(x, self.weight, None, self.stride, self.padding, self.dilation, self.groups)
        return y if self.bias is None else y + self.bias.reshape(1, -1, 1, 1)


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
