"""DIST: match how probabilities relate, within an image and within a class, instead of their values."""

from __future__ import annotations

from kdtrain import Batch, NeedsTeacher, NeedsWholeBatch, Objective, Output, UsageError, flow

_EPSILON = 1e-8


class Dist(NeedsTeacher, NeedsWholeBatch):
    """Makes the student's probabilities correlate with the teacher's, along rows and along columns.

    Huang et al., "Knowledge Distillation from A Stronger Teacher" (2022), section 4. Both correlations
    have one weight, 2 beside 1 for the labels' loss, and T is 1, as in the authors' settings for
    ImageNet (hunto/image_classification_sota, configs/strategies/distill/resnet_dist.yaml); for
    CIFAR-100 they have T = 4. A class's correlation is over the images of a process's batch. The loss
    takes the place of the soft targets, under their weight: the sum with the labels' loss is
    ``--alpha 0.5``.

    Args:
        weight: of both correlations together, above 0.
        temperature: T, above 0. The loss is multiplied by T^2.
    """

    def __init__(self, weight: float = 2.0, temperature: float = 1.0) -> None:
        if not 0.0 < weight < float("inf"):
            raise UsageError(f"weight={weight}: it must be above 0.")
        if not 0.0 < temperature < float("inf"):
            raise UsageError(f"temperature={temperature}: it must be above 0.")
        self.weight = weight
        self.temperature = temperature

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective with the term ``dist`` instead of ``kd``."""
        self.teacher = objective.teacher
        return objective.replace("kd", self.loss, rename="dist", factor=self.weight)

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns T^2 times the two distances of correlation, 0 to 4."""
        return dist_loss(output.logits, self.teacher.logits(batch), self.temperature)


def dist_loss(student: flow.Tensor, teacher: flow.Tensor, temperature: float) -> flow.Tensor:
    """Returns T^2 [(1 - mean correlation of the rows) + (1 - mean correlation of the columns)].

    In float64: near the optimum a correlation is 1 minus little.

    Args:
        student: logits, (B, classes); the gradient flows here.
        teacher: logits, (B, classes).
        temperature: T.
    """
    ours, theirs = (flow.softmax(logits.double() / temperature, dim=1) for logits in (student, teacher))
    rows, columns = (correlation(ours, theirs, dim).mean() for dim in (1, 0))
    return ((2.0 - rows - columns) * temperature**2).float()


def correlation(a: flow.Tensor, b: flow.Tensor, dim: int) -> flow.Tensor:
    """Returns Pearson's correlation of ``a`` and ``b`` along ``dim``; 0 where either is constant."""
    a, b = (x - x.mean(dim=dim, keepdim=True) for x in (a, b))
    squares = (a * a).sum(dim=dim) * (b * b).sum(dim=dim)
    # Inside the root, so that it has a slope where a column is constant, as it is in a batch of one.
    return (a * b).sum(dim=dim) / (squares + _EPSILON**2).sqrt()
