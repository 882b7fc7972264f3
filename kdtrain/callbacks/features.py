"""Adds a loss between a layer of the student and one of its teacher: what methods on features share."""

from __future__ import annotations

from collections.abc import Callable

from kdtrain.data.loader import Batch
from kdtrain.engine.callback import NeedsTeacher
from kdtrain.engine.objective import Objective
from kdtrain.engine.recorder import Output, Shape, Teacher
from kdtrain.errors import UsageError
from kdtrain.runtime import flow

FeatureLoss = Callable[["flow.Tensor", "flow.Tensor"], "flow.Tensor"]
"""A loss of the student's and the teacher's features, (B, ...) each, to a scalar tensor.

One that is an ``nn.Module`` has its parameters trained along with the student.
"""


class FeatureMethod(NeedsTeacher):
    """Compares a layer of the student with one of the teacher; what a method says is how.

    The term is named after the class and the layers, ``fitnet_fc1`` or ``fitnet_fc1_fc2``, so that a
    method takes part once for each pair of layers. It comes beside the soft targets: without
    those, ``--alpha 0``.

    Args:
        student_layer: name of a layer of the student.
        teacher_layer: name of a layer of the teacher.
        weight: above 0.
    """

    def __init__(self, student_layer: str, teacher_layer: str, weight: float = 1.0) -> None:
        if not 0.0 < weight < float("inf"):
            raise UsageError(f"weight={weight}: it must be above 0.")
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self.weight = weight

    def make_loss(self, student: Shape, teacher: Shape) -> FeatureLoss:
        """Returns the loss, which a method has to override.

        Args:
            student: the shape of the student's features for one image.
            teacher: that of the teacher's.
        """
        raise NotImplementedError

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective with the loss as one more term."""
        teacher = objective.teacher
        shapes = objective.student.record(self.student_layer), teacher.record(self.teacher_layer)
        layers = dict.fromkeys((self.student_layer, self.teacher_layer))
        name = "_".join((type(self).__name__.lower(), *layers))
        term = FeatureTerm(self.make_loss(*shapes), self.student_layer, self.teacher_layer, teacher)
        return objective.add(name, term, self.weight)


class FeatureTerm(flow.nn.Module):
    """The term that gives a loss the two layers' outputs."""

    def __init__(self, loss: FeatureLoss, student_layer: str, teacher_layer: str, teacher: Teacher) -> None:
        super().__init__()
        self.loss = loss
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self.teacher = teacher  # not a module: its weights are none of this one's

    def forward(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the loss of a batch."""
        theirs = self.teacher.features(batch)[self.teacher_layer]
        return self.loss(output.features[self.student_layer], theirs)
