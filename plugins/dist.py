"""DIST: a loss on the correlation of probabilities, within an image and within a class."""

from __future__ import annotations

from kdtrain import Batch, LogitMethod, Output, flow, positive

_EPSILON = 1e-8


class Dist(LogitMethod):
    """Makes the student's probabilities correlate with the teacher's, along rows and along columns.

    Huang et al., "Knowledge Distillation from A Stronger Teacher" (2022), section 4. Both correlations
    have one weight, 2 beside 1 for the labels' loss, and T is 1, as in the authors' settings for
    ImageNet (hunto/image_classification_sota, configs/strategies/distill/resnet_dist.yaml); for
    CIFAR-100 they use T = 4. A class's correlation is taken over the images of a batch; with
    ``--nproc-per-node``, of a process's own batch. The loss replaces the soft targets, under their weight;
    ``--alpha 0.5`` gives the paper's sum with the labels' loss.

    Card:
        Copies: which classes of an image are more probable than others, and which images of a class; not how
            probable.
        Helps: where the teacher is much stronger than the student, which cannot reach its probabilities (the
            paper's case).
        Hurts: small batches and many classes: a class then has few images to correlate. Probabilities: how
            high they are is not copied, so the calibration error grows.
        Cost: two correlations of the batch's probabilities.
        Measured: against the plain student. mnist, student_mlp, 5000 images: +0.60 points, 1.7 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +1.06 points, 1.6 x the epoch; mnist, student_mlp, 5000
            labels: +1.40 points, 2.3 x the epoch. See docs/methods.md.

    Args:
        weight: weight of both correlations together, above 0.
        temperature: T, above 0. The loss is multiplied by T^2.
    """

    def __init__(self, weight: float = 2.0, temperature: float = 1.0) -> None:
        self.weight = positive("weight", weight)
        self.temperature = positive("temperature", temperature)

    def loss(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the loss of ``dist_loss`` for a batch: a float32 scalar from 0 to 4 T^2."""
        return dist_loss(output.logits, self.teacher.logits(batch), self.temperature)


def dist_loss(student: flow.Tensor, teacher: flow.Tensor, temperature: float) -> flow.Tensor:
    """Returns T^2 [(1 - mean correlation of the rows) + (1 - mean correlation of the columns)].

    It is computed in float64, because a correlation is close to 1 near the optimum.

    Args:
        student: logits, (B, C) float32; the gradient flows here.
        teacher: logits, (B, C) float32.
        temperature: T.

    Returns:
        A float32 scalar.
    """
    student_probs = flow.softmax(student.double() / temperature, dim=1)
    teacher_probs = flow.softmax(teacher.double() / temperature, dim=1)
    rows = correlation(student_probs, teacher_probs, dim=1).mean()
    columns = correlation(student_probs, teacher_probs, dim=0).mean()
    return ((2.0 - rows - columns) * temperature**2).float()


def correlation(a: flow.Tensor, b: flow.Tensor, dim: int) -> flow.Tensor:
    """Returns Pearson's correlation of ``a`` and ``b`` along ``dim``; 0 where either is constant.

    Args:
        a: (B, C) float64.
        b: (B, C) float64.
        dim: 0 for the correlation of columns, (C,) float64; 1 for that of rows, (B,) float64.
    """
    a = a - a.mean(dim=dim, keepdim=True)
    b = b - b.mean(dim=dim, keepdim=True)
    squares = (a * a).sum(dim=dim) * (b * b).sum(dim=dim)
    # Added inside the root, which then has a finite slope at a constant column, such as in a batch of one.
    return (a * b).sum(dim=dim) / (squares + _EPSILON**2).sqrt()
