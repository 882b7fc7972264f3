"""The base of methods that compare a layer of the student with a layer of its teacher."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

from kdtrain.data.loader import Batch
from kdtrain.engine.callback import NeedsTeacher
from kdtrain.engine.objective import Objective
from kdtrain.engine.recorder import Output, Recorder, Shape, Teacher
from kdtrain.engine.run import Run
from kdtrain.errors import UsageError, size_text
from kdtrain.runtime import flow
from kdtrain.runtime.value_checks import positive

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
        self.student_layer = student_layer
        self.teacher_layer = teacher_layer
        self.weight = positive("weight", weight)

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


def layer_pairs(students: Mapping[str, Shape], teachers: Mapping[str, Shape]) -> list[tuple[str, str]]:
    """Returns pairs of layers that could be compared, the most sensible first.

    The first are maps of equal size, the last such layers before earlier ones. Then come the last layers of
    both, then the last maps of both, and then pairs at the same relative depth. The relative depth of a layer
    is its position among the layers, from 0 to 1.

    Args:
        students: the shapes of the student's layers for one image, in order of execution.
        teachers: those of the teacher's.
    """
    pairs = [*_equal_maps(students, teachers), *_by_depth(students, teachers)[:1]]
    pairs += _by_depth(_maps(students), _maps(teachers)) + _by_depth(students, teachers)
    return list(dict.fromkeys(pairs))


def describe_layers(layers: Mapping[str, Shape]) -> str:
    """Returns a text such as ``conv1 (32x26x26), fc1 (128)``."""
    return ", ".join(f"{name} ({size_text(shape) or 1})" for name, shape in layers.items()) or "none"


def _equal_maps(students: Mapping[str, Shape], teachers: Mapping[str, Shape]) -> Iterator[tuple[str, str]]:
    last = {shape[1:]: name for name, shape in _maps(teachers).items()}
    for name, shape in reversed(_maps(students).items()):
        if shape[1:] in last:
            yield name, last[shape[1:]]


def _maps(layers: Mapping[str, Shape]) -> dict[str, Shape]:
    """Returns the layers that put out maps of more than one pixel."""
    return {name: shape for name, shape in layers.items() if len(shape) == 3 and shape[1] * shape[2] > 1}


def _by_depth(students: Mapping[str, Shape], teachers: Mapping[str, Shape]) -> list[tuple[str, str]]:
    """Returns each layer with the other network's at the nearest relative depth; the last ones first."""
    if not students or not teachers:
        return []
    depths, teacher_depths = _depths(students), _depths(teachers)
    pairs = [(name, _nearest(depth, teacher_depths)) for name, depth in depths.items()]
    pairs += [(_nearest(depth, depths), name) for name, depth in teacher_depths.items()]
    return sorted(pairs, key=lambda pair: depths[pair[0]] + teacher_depths[pair[1]], reverse=True)


def _depths(layers: Mapping[str, Shape]) -> dict[str, float]:
    return {name: (number + 1) / len(layers) for number, name in enumerate(layers)}


def _nearest(depth: float, depths: Mapping[str, float]) -> str:
    """Returns the name whose depth is the nearest; of two, the later."""
    return min(reversed(list(depths)), key=lambda name: abs(depths[name] - depth))
