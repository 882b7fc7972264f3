"""The base of methods that compare a layer of the student with a layer of its teacher."""

from __future__ import annotations

from collections.abc import Callable

from kdtrain.data.loader import Batch
from kdtrain.engine.callback import NeedsTeacher
from kdtrain.engine.objective import Objective
from kdtrain.engine.recorder import Output, Shape, Teacher
from kdtrain.errors import UsageError
from kdtrain.runtime import flow

FeatureLoss = Callable[["flow.Tensor", "flow.Tensor"], "flow.Tensor"]
"""A loss: maps the student's and the teacher's features, (B, ...) float32 each, to a scalar tensor.

The parameters of a loss that is an ``nn.Module`` are trained along with the student.
"""


class FeatureMethod(NeedsTeacher):
    """Compares a layer of the student with one of the teacher. A method overrides ``make_loss``.

    The term is named after the class and the layers, ``fitnet_fc1`` or ``fitnet_fc1_fc2``, so that a fit
    may have a method several times, once for each pair of layers. The soft targets stay in the objective;
    ``--alpha 0`` removes them.

    Args:
        student_layer: name of a layer of the student.
        teacher_layer: name of a layer of the teacher.
        weight: the term's weight, above 0.
    """

    def __init__(self, student_layer: str, teacher_layer: str, weight: float = 1.0) -> None:
        if not 0.0 < weight < float("inf"):
            raise UsageError(f"weight={weight}: it must be above 0.")
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self.weight = weight

    def make_loss(self, student: Shape, teacher: Shape) -> FeatureLoss:
        """Returns the loss; every method overrides this.

        Args:
            student: the shape of the student's features for one image.
            teacher: the shape of the teacher's features for one image.
        """
        raise NotImplementedError

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective with the loss as one more term."""
        teacher = objective.teacher
        student_shape = objective.student.record(self.student_layer)
        loss = self.make_loss(student_shape, teacher.record(self.teacher_layer))
        layers = dict.fromkeys((self.student_layer, self.teacher_layer))
        name = "_".join((type(self).__name__.lower(), *layers))
        term = FeatureTerm(loss, self.student_layer, self.teacher_layer, teacher)
        return objective.add(name, term, self.weight)


class FeatureTerm(flow.nn.Module):
    """The term that calls a loss with the outputs of the two layers."""

    def __init__(self, loss: FeatureLoss, student_layer: str, teacher_layer: str, teacher: Teacher) -> None:
        super().__init__()
        self.loss = loss
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self.teacher = teacher  # no module, so that its weights are not parameters of this term

    def forward(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the loss of a batch: a scalar tensor, the mean over the images.

        Args:
            batch: images and labels, see ``Batch``.
            output: the student's output, with the features of the student's layer, (B, ...) float32.
        """
        teacher_features = self.teacher.features(batch)[self.teacher_layer]
        return self.loss(output.features[self.student_layer], teacher_features)
