"""FitNets: a regression from an inner layer of the student to one of the teacher."""

from __future__ import annotations

import math

from kdtrain import Conv2d, FeatureLoss, FeatureMethod, Shape, UsageError, flow


class FitNet(FeatureMethod):
    """Adds the squared distance between a teacher's layer and a regression from the student's layer.

    Romero et al., "FitNets: Hints for Thin Deep Nets" (2015), section 2.2, equation 3. The hint is not
    a stage of its own but one more term, the mean over all values, as in megvii-research/mdistiller
    (distillers/FitNet.py). The weight there is 100, for convolutional networks whose features batch
    normalisation keeps small. It is 1 here, because without batch normalisation 100 outweighs the labels:
    ``student_mlp`` after ``hinton_1200``, ``fc1`` each, 10,000 images of MNIST, 20 epochs, recognised
    95.4 % of the held-out images with 1, 94.3 % with 10, 93.9 % with 100 (95.3 % without the hint; means
    of two seeds). The regressor is trained along with the student and is not part of it. ``--alpha 0``
    gives the paper's objective, without soft targets.

    Card:
        Copies: the values of an inner layer, through a trained regression.
        Helps: where the student's layer is nearly as wide as the teacher's.
        Hurts: where it is much narrower, or the weight is large: the student learns features that its labels
            do not need.
        Cost: a linear layer or convolution, and the teacher's layer on disk.
        Measured: against the plain student. mnist, student_mlp, 5000 images: +0.11 points, 1.7 x the epoch;
            fashion_mnist, student_mlp, 5000 images: +1.06 points, 1.9 x the epoch; mnist, student_mlp, 5000
            labels: +1.04 points, 2.8 x the epoch. See docs/methods.md.

    Args:
        student_layer: name of the guided layer, in the student; ``auto`` chooses.
        teacher_layer: name of the hint layer, in the teacher; ``auto`` chooses.
        weight: the term's weight, above 0.
    """

    def __init__(self, student_layer: str = "auto", teacher_layer: str = "auto", weight: float = 1.0) -> None:
        super().__init__(student_layer, teacher_layer, weight)

    def make_loss(self, student: Shape, teacher: Shape) -> FeatureLoss:
        """Returns the loss, with a new regressor."""
        return Hint(make_regressor(student, teacher))


class Hint(flow.nn.Module):
    """The mean squared difference between the teacher's features and the student's after regression."""

    def __init__(self, regressor: flow.nn.Module) -> None:
        super().__init__()
        self.regressor = regressor

    def forward(self, student: flow.Tensor, teacher: flow.Tensor) -> flow.Tensor:
        """Returns the mean over all images and features, a float32 scalar.

        Args:
            student: features, (B, ...) float32; the gradient flows here.
            teacher: features, (B, ...) float32.
        """
        difference = self.regressor(student) - teacher.reshape(len(teacher), -1)
        return (difference * difference).mean()


def make_regressor(student: Shape, teacher: Shape) -> flow.nn.Module:
    """Returns a new regressor: (B, *student) float32 to (B, prod(teacher)) float32.

    Between maps it is a convolution without padding, whose kernel takes the student's size to the
    teacher's, as in the paper; otherwise a fully connected layer.

    Args:
        student: the shape of the student's features for one image.
        teacher: the shape of the teacher's features for one image.

    Raises:
        UsageError: the student's map is smaller than the teacher's.
    """
    if len(student) == len(teacher) == 3:
        (channels, height, width), (teacher_channels, teacher_height, teacher_width) = student, teacher
        kernel = (height - teacher_height + 1, width - teacher_width + 1)
        if min(kernel) < 1:
            raise UsageError(
                f"the student's maps are {height} x {width}, the teacher's {teacher_height} x "
                f"{teacher_width}: a regressor cannot enlarge maps. "
                "Choose an earlier layer of the student or a later one of the teacher."
            )
        return flow.nn.Sequential(Conv2d(channels, teacher_channels, kernel), flow.nn.Flatten())
    return flow.nn.Sequential(flow.nn.Flatten(), flow.nn.Linear(math.prod(student), math.prod(teacher)))
