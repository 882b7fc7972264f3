"""Max-norm: an upper bound on the length of each unit's incoming weights."""

from __future__ import annotations

from kdtrain import Callback, Objective, flow, positive


class MaxNorm(Callback):
    """Shortens a unit's incoming weights, after every step, to a greatest length.

    Hinton et al., "Improving neural networks by preventing co-adaptation of feature detectors" (2012),
    section 2, bound the square of the length by 15 (a limit of 3.9); Srivastava et al., "Dropout: a
    simple way to prevent neural networks from overfitting" (2014), sections 5.1 and B.1, take 3 to 4,
    and 2 on MNIST. The limit holds for every linear layer, and for each output channel of a convolution;
    biases are not changed.

    Args:
        limit: the greatest Euclidean length, above 0.
    """

    def __init__(self, limit: float = 3.0) -> None:
        self.limit = positive("limit", limit)

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective under the constraint."""
        layers = objective.student.network.modules()
        self.weights = [
            layer.weight for layer in layers if isinstance(layer, (flow.nn.Linear, flow.nn.Conv2d))
        ]
        return objective.with_constraint(self.shorten)

    def shorten(self) -> None:
        """Projects each unit's weights, a row of (units, ...) float32, on the ball of radius ``limit``."""
        for weight in self.weights:
            # In four dimensions, because OneFlow's loop over two takes a hundred times as long.
            rows = weight.reshape(1, len(weight), 1, -1)
            lengths = rows.square().sum(dim=3, keepdim=True).sqrt()
            weight.copy_((rows * (self.limit / lengths).clamp(max=1.0)).reshape(weight.shape))
