"""Decoupled weight decay: the callback that shrinks weights after each optimizer step."""

from __future__ import annotations

from typing import Any

import numpy as np

from kdtrain.engine.callback import Callback
from kdtrain.engine.objective import Objective
from kdtrain.engine.run import Run
from kdtrain.errors import UsageError
from kdtrain.nn.operations import small_in_numpy
from kdtrain.runtime import flow


class WeightDecay(Callback):
    """Multiplies weights by 1 - lr * decay after each optimizer step, whatever the optimizer.

    Loshchilov, Hutter, "Decoupled Weight Decay Regularization" (2019), section 2, algorithm 2. The paper
    subtracts lr * decay times the weight of before the step; here it is the weight after the step, which
    differs by lr * decay times the step. The rate is that of the step, and each parameter group has its own.

    Weights with two axes or more shrink: those of linear layers and convolutions. Biases and the parameters
    of normalisation do not, nor does a weight without a gradient, such as that of a frozen layer. The weights
    of terms that are modules, such as FitNets' regressor, shrink as well: they are trained by the same
    optimizer, and a regressor could otherwise grow by what the layer before it has lost.

    Args:
        decay: the share of a weight, times the learning rate, that a step takes away: above 0, at most 1.
    """

    def __init__(self, decay: float) -> None:
        if not 0.0 < decay <= 1.0:
            raise UsageError(f"weight decay {decay}: it must be above 0 and at most 1.")
        self.decay = decay
        self._groups: list[tuple[Any, list[flow.Tensor]]] = []

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective under the constraint."""
        return objective.with_constraint(self.shrink)

    def on_fit_start(self, run: Run) -> None:
        """Collects the optimizer's weights."""
        self._groups = [
            (group, [parameter for parameter in group.parameters if parameter.ndim > 1])
            for group in run.optimizer.param_groups
        ]

    def shrink(self) -> None:
        """Shrinks the weights in place, before ``on_batch`` sets the rate of the next step."""
        for group, weights in self._groups:
            factor = 1.0 - float(group["lr"]) * self.decay
            for weight in weights:
                if weight.grad is None:
                    continue
                if small_in_numpy(weight):
                    numbers = weight.to_numpy()  # a view of its memory
                    with np.errstate(all="ignore"):
                        numbers *= np.float32(factor)
                else:
                    weight.mul_(factor)
