"""The base of methods that compare a layer of the student with a layer of its teacher."""

from __future__ import annotations

import logging
from collections.abc import Callable

from kdtrain.callbacks.layer_pairs import describe_layers, layer_pairs
from kdtrain.data.loader import Batch
from kdtrain.engine.callback import NeedsTeacher
from kdtrain.engine.objective import Objective
from kdtrain.engine.recorder import Output, Recorder, Shape, Teacher
from kdtrain.engine.run import Run
from kdtrain.errors import UsageError
from kdtrain.runtime import flow

logger = logging.getLogger(__name__)

FeatureLoss = Callable[["flow.Tensor", "flow.Tensor"], "flow.Tensor"]
"""A loss: maps the student's and the teacher's features, (B, ...) float32 each, to a scalar tensor.

The parameters of a loss that is an ``nn.Module`` are trained along with the student.
"""


AUTO = "auto"
"""The name that stands for a layer that kdtrain chooses."""


class FeatureMethod(NeedsTeacher):
    """Compares a layer of the student with one of the teacher. A method overrides ``make_loss``.

    The term is named after the class and the layers, ``fitnet_fc1`` or ``fitnet_fc1_fc2``, so that a fit
    may have a method several times, once for each pair of layers. The soft targets stay in the objective;
    ``--alpha 0`` removes them.

    Where a layer is ``auto``, the pair is chosen by place and size, among the pairs that ``make_loss`` takes:
    see ``layer_pairs``. The fit logs it.

    Args:
        student_layer: name of a layer of the student, or ``auto``.
        teacher_layer: name of a layer of the teacher, or ``auto``.
        weight: the term's weight, above 0.

    Attributes:
        student_layer: the layer of the student; from ``configure`` on, the chosen one.
        teacher_layer: the layer of the teacher; from ``configure`` on, the chosen one.
    """

    _asked: tuple[str, str] | None = None
    _chosen = ""

    def __init__(self, student_layer: str = AUTO, teacher_layer: str = AUTO, weight: float = 1.0) -> None:
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
        """Returns the objective with the loss as one more term.

        Raises:
            UsageError: there is no such layer, or no pair of layers that the method can compare.
        """
        teacher = objective.teacher
        if self._asked is None:  # a method may be configured several times
            self._asked = self.student_layer, self.teacher_layer
        if AUTO in self._asked:
            loss = self._choose(objective.student, teacher, self._asked)
        else:
            student_shape = objective.student.record(self.student_layer)
            loss = self.make_loss(student_shape, teacher.record(self.teacher_layer))
        layers = dict.fromkeys((self.student_layer, self.teacher_layer))
        name = "_".join((type(self).__name__.lower(), *layers))
        term = FeatureTerm(loss, self.student_layer, self.teacher_layer, teacher)
        return objective.add(name, term, self.weight)

    def on_fit_start(self, run: Run) -> None:
        """Logs the layers, if they were chosen."""
        if self._chosen:
            logger.info(self._chosen)

    def _choose(self, student: Recorder, teacher: Recorder, asked: tuple[str, str]) -> FeatureLoss:
        """Chooses the layers, has them recorded and returns the loss."""
        networks = (student, teacher)
        sides = [
            network.hidden_layers() if name == AUTO else {name: network.record(name)}
            for network, name in zip(networks, asked, strict=True)
        ]
        reason = ""
        for pair in layer_pairs(*sides):
            self.student_layer, self.teacher_layer = pair
            new = [
                network for network, name in zip(networks, pair, strict=True) if name not in network.layers
            ]
            shapes = [network.record(name) for network, name in zip(networks, pair, strict=True)]
            try:
                loss = self.make_loss(*shapes)
            except UsageError as error:
                reason = reason or f" ({', '.join(pair)}: {str(error).rstrip('.')})"
                for network in new:
                    network.forget(pair[networks.index(network)])
                continue
            texts = [describe_layers({name: shape}) for name, shape in zip(pair, shapes, strict=True)]
            method = type(self).__name__.lower()
            self._chosen = f"{method} compares the student's layer {texts[0]} with the teacher's {texts[1]}."
            return loss
        raise UsageError(
            f"there are no layers of student and teacher that {type(self).__name__.lower()} can compare"
            f"{reason}. The student has {describe_layers(sides[0])}; the teacher has "
            f"{describe_layers(sides[1])}."
        )


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
