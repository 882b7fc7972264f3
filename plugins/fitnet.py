"""FitNets: an inner layer of the student is to predict one of the teacher's."""

from __future__ import annotations

import math

from kdtrain import Conv2d, FeatureLoss, FeatureMethod, Shape, UsageError, flow


class FitNet(FeatureMethod):
    """Adds the squared distance between a teacher's layer and what a regressor makes of the student's.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), section 2.2, equation 3. The hint is not
    a stage of its own but a term beside the others, the mean over all values, as in
    megvii-research/mdistiller (distillers/FitNet.py). Its weight there is 100, for convolutional
    networks whose features batch normalisation keeps small; here it is 1, because 100 drowns the labels
    where nothing does: ``student_mlp`` after ``hinton_1200``, ``fc1`` each, 10,000 images of MNIST, 20
    epochs, recognised 95.4 % of the held-out images with 1, 94.3 % with 10, 93.9 % with 100 (95.3 %
    without the hint; means of two seeds). The regressor is trained along with the student and is no
    part of it. For the paper's objective, without soft targets, ``--alpha 0``.

    Args:
        student_layer: name of the guided layer, in the student.
        teacher_layer: name of the hint layer, in the teacher.
        weight: above 0.
    """

    def __init__(self, student_layer: str, teacher_layer: str, weight: float = 1.0) -> None:
        super().__init__(student_layer, teacher_layer, weight)

    def make_loss(self, student: Shape, teacher: Shape) -> FeatureLoss:
        """Returns the distance, with a new regressor."""
        return Hint(make_regressor(student, teacher))


class Hint(flow.nn.Module):
    """The mean squared difference between regressed student's and teacher's features."""

    def __init__(self, regressor: flow.nn.Module) -> None:
        super().__init__()
        self.regressor = regressor

    def forward(self, student: flow.Tensor, teacher: flow.Tensor) -> flow.Tensor:
        """Returns the mean over all images and features."""
        difference = self.regressor(student) - teacher.reshape(len(teacher), -1)
        return (difference * difference).mean()


def make_regressor(student: Shape, teacher: Shape) -> flow.nn.Module:
    """Returns a new layer from features of one shape to (B, features of the other).

    Between maps it is a convolution without padding, whose kernel takes the student's size to the
    teacher's, as in the paper; otherwise a fully connected layer.

    Raises:
        UsageError: the student's map is smaller than the teacher's.
    """
    if len(student) == len(teacher) == 3:
        kernel = tuple(own - other + 1 for own, other in zip(student[1:], teacher[1:], strict=True))
        if min(kernel) < 1:
            sizes = " and the ".join(
                f"{who}'s {' x '.join(map(str, shape[1:]))}"
                for who, shape in (("student", student), ("teacher", teacher))
            )
            raise UsageError(
                f"the {sizes}: a regressor makes maps smaller only. "
                "Choose an earlier layer of the student or a later one of the teacher."
            )
        return flow.nn.Sequential(Conv2d(student[0], teacher[0], kernel), flow.nn.Flatten())
    return flow.nn.Sequential(flow.nn.Flatten(), flow.nn.Linear(math.prod(student), math.prod(teacher)))
