"""The choice of layers to compare: pairs of a student's and a teacher's layers, by place and size."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from kdtrain.engine.recorder import Shape
from kdtrain.errors import size_text


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
