"""A training step on cross-entropy, as the Trainer makes it, without the Trainer."""

from __future__ import annotations

from kdtrain.nn.losses import CrossEntropy
from kdtrain.runtime import flow
from kdtrain.runtime.processor import zero_upper_avx


def bare_step(
    network: flow.nn.Module, optimizer: flow.optim.Optimizer, inputs: flow.Tensor, targets: flow.Tensor
) -> flow.Tensor:
    """Makes a step on images (N, C, H, W) and labels (N,); returns the loss before it, a scalar in nats."""
    optimizer.zero_grad(set_to_none=True)
    logits = network(inputs)
    zero_upper_avx()
    loss: flow.Tensor = CrossEntropy(targets).apply(logits)
    loss.backward()
    zero_upper_avx()
    optimizer.step()
    return loss
