"""Knowledge review: each layer of the student, fused with its deeper ones, learns a layer of the teacher."""

from __future__ import annotations

from collections.abc import Sequence

from kdtrain import (
    Batch,
    Conv2d,
    NeedsTeacher,
    Objective,
    Output,
    Recorder,
    Shape,
    Teacher,
    UsageError,
    at_least,
    flow,
    positive,
)

F = flow.nn.functional

_MOST_CHANNELS = 512
_SIDES = (4, 2, 1)  # pixels, of the smaller maps that are compared as well


class ReviewKd(NeedsTeacher):
    """Compares several layers, after fusing the student's from the deepest to the first.

    Chen et al., "Distilling Knowledge via Knowledge Review" (CVPR 2021), section 3.2, equation 11, with the
    attention-based fusion and the hierarchical context loss of section 3.3. Layers, weights of the sizes and
    warm-up are those of the authors' code (dvlab-research/ReviewKD, CIFAR-100/model/reviewkd.py), where the
    weight is 0.6 to 8 for different networks; 1 is its default. The layers are named instead of fixed: a ReLU
    counts only if the named layer has it. A layer without maps counts as one pixel. The student's larger maps
    are averaged down to the teacher's size, where the authors' code takes single pixels: one of all, for a
    layer without maps. ``--alpha 0`` gives the paper's objective, without soft targets. The networks that
    fuse are trained along with the student and are not part of it.

    Card:
        Copies: several inner layers, each from the student's layers up to its depth.
        Helps: convolutional networks, whose early maps the student's deeper layers can reconstruct (the
            paper's case).
        Hurts: few epochs: the networks that fuse have to be trained first, and ``warmup`` takes 20.
        Cost: the highest of all: convolutions of 512 channels at most, trained beside the student, take over
            a hundred times a small student's step.
        Measured: not yet.

    Args:
        student_layers: names of layers of the student, from the first to the deepest: ``conv1+conv2``.
        teacher_layers: as many names of layers of the teacher.
        weight: the term's weight, above 0.
        warmup: epochs in which the weight rises to its full value, in equal steps.
    """

    def __init__(
        self, student_layers: str, teacher_layers: str, weight: float = 1.0, warmup: int = 20
    ) -> None:
        self.student_layers = student_layers.split("+")
        self.teacher_layers = teacher_layers.split("+")
        if not len(self.student_layers) == len(self.teacher_layers) >= 2:
            raise UsageError(
                f"student_layers={student_layers}, teacher_layers={teacher_layers}: give the same number of "
                "names, at least 2, with + between them."
            )
        self.weight = positive("weight", weight)
        self.warmup = at_least("warmup", warmup, 0)

    def configure(self, objective: Objective) -> Objective:
        """Returns the objective with the term ``review_kd``.

        Raises:
            UsageError: a layer has neither maps nor vectors, or a deeper layer has larger maps.
        """
        teacher = objective.teacher
        students = _record(objective.student, self.student_layers)
        teachers = _record(teacher, self.teacher_layers)
        term = Review(self.student_layers, students, self.teacher_layers, teachers, teacher)
        return objective.add("review_kd", term, self.ramp)

    def ramp(self, epochs_done: float) -> float:
        """Returns the weight after ``epochs_done`` epochs: 1/warmup of the full one in the first epoch."""
        return self.weight * (min((int(epochs_done) + 1) / self.warmup, 1.0) if self.warmup else 1.0)


def _record(network: Recorder, layers: Sequence[str]) -> list[Shape]:
    """Returns the shapes of layers for one image, (C, H, W) each, and has the layers recorded."""
    shapes: list[Shape] = []
    for layer in layers:
        shape = network.record(layer)
        if len(shape) not in (1, 3):
            size = " x ".join(map(str, shape)) or "one value"
            raise UsageError(
                f"review_kd needs feature maps or vectors, but the {network.role}'s layer {layer!r} puts "
                f"out {size} per image: choose another layer."
            )
        shapes.append((*shape, 1, 1)[:3])
    for i in range(1, len(shapes)):
        if max(shapes[i][1:]) > max(shapes[i - 1][1:]):
            raise UsageError(
                f"the {network.role}'s layer {layers[i]!r} has larger maps than {layers[i - 1]!r}: name the "
                "layers from the first to the deepest."
            )
    return shapes


class Review(flow.nn.Module):
    """The term: fuses the student's layers, and compares them with the teacher's.

    Args:
        student_layers: names of the student's layers, from the first to the deepest.
        students: their shapes for one image, (C, H, W) each.
        teacher_layers: names of the teacher's layers.
        teachers: their shapes for one image, (C, H, W) each.
        teacher: the teacher.
    """

    def __init__(
        self,
        student_layers: Sequence[str],
        students: Sequence[Shape],
        teacher_layers: Sequence[str],
        teachers: Sequence[Shape],
        teacher: Teacher,
    ) -> None:
        super().__init__()
        self.student_layers = student_layers
        self.teacher_layers = teacher_layers
        self.teacher = teacher  # no module, so that its weights are not parameters of this term
        middle, deepest = min(_MOST_CHANNELS, students[-1][0]), len(students) - 1
        self.fusions = flow.nn.ModuleList(
            [
                Fusion(student[0], middle, target[0], fuses=number < deepest)
                for number, (student, target) in enumerate(zip(students, teachers, strict=True))
            ]
        )

    def forward(self, batch: Batch, output: Output) -> flow.Tensor:
        """Returns the sum over the layers of ``multiscale_distance``: a float32 scalar.

        Args:
            batch: images and labels, see ``Batch``.
            output: the student's output, with the features of its layers, (B, ...) float32 each.

        Raises:
            UsageError: the batch is a single image, which batch normalisation cannot be trained on.
        """
        if len(batch) < 2:
            raise UsageError(
                "review_kd normalises a batch: give each process at least 2 images (--batch-size)."
            )
        recorded = self.teacher.features(batch)
        deeper = total = None
        layers = zip(self.fusions, self.student_layers, self.teacher_layers, strict=True)
        for fusion, student_layer, teacher_layer in reversed(list(layers)):
            target = _as_maps(recorded[teacher_layer])
            made, deeper = fusion(_as_maps(output.features[student_layer]), deeper, target.shape[2:])
            distance = multiscale_distance(made, target)
            total = distance if total is None else total + distance
        return total


class Fusion(flow.nn.Module):
    """A layer's features, mixed with those of the deeper layers by attention, in the teacher's shape.

    Args:
        channels: channels of the student's layer.
        middle: channels of the mixed features.
        target: channels of the teacher's layer.
        fuses: whether there are deeper layers.
    """

    def __init__(self, channels: int, middle: int, target: int, fuses: bool) -> None:
        super().__init__()
        self.enter = _convolution(channels, middle, 1)
        self.attention = Conv2d(2 * middle, 2, 1) if fuses else None
        self.leave = _convolution(middle, target, 3)

    def forward(
        self, x: flow.Tensor, deeper: flow.Tensor | None, size: Sequence[int]
    ) -> tuple[flow.Tensor, flow.Tensor]:
        """Returns features to compare with the teacher's, and those for the layer before this one.

        Args:
            x: the student's features, (B, C, H, W) float32.
            deeper: the second result for the next deeper layer, (B, middle, ..., ...) float32.
            size: height and width of the teacher's maps.

        Returns:
            (B, target, *size) and (B, middle, *size) float32.
        """
        x = self.enter(x)
        if self.attention is not None:
            deeper = _resized(deeper, x.shape[2:])
            shares = flow.sigmoid(self.attention(flow.cat([x, deeper], dim=1)))
            # Repeated, because broadcast products of maps are slow.
            own, other = (shares[:, i : i + 1].repeat(1, x.shape[1], 1, 1) for i in (0, 1))
            x = x * own + deeper * other
        x = _resized(x, size)
        return self.leave(x), x


def multiscale_distance(made: flow.Tensor, target: flow.Tensor) -> flow.Tensor:
    """Returns the weighted mean of the squared distances at full size and at 4, 2 and 1 pixels a side.

    Each size below that of the maps has half the weight of the one before.

    Args:
        made: (B, C, H, W) float32; the gradient flows here.
        target: (B, C, H, W) float32.

    Returns:
        A float32 scalar.
    """
    difference = made - target
    total, weight, weights = (difference * difference).mean(), 1.0, 1.0
    for side in _SIDES:
        if side < min(made.shape[2:]):
            # The mean over pixels is linear, so that of the difference is the difference of the means.
            apart = F.adaptive_avg_pool2d(difference, (side, side))
            weight /= 2
            weights += weight
            total = total + (apart * apart).mean() * weight
    return total / weights


def _convolution(channels: int, width: int, kernel: int) -> flow.nn.Module:
    """Returns a convolution that keeps the size, with batch normalisation."""
    layer = Conv2d(channels, width, kernel, padding=kernel // 2, bias=False)
    flow.nn.init.kaiming_uniform_(layer.weight, a=1)
    # Without running means, which only an evaluation would use.
    return flow.nn.Sequential(layer, flow.nn.BatchNorm2d(width, track_running_stats=False))


def _resized(x: flow.Tensor, size: Sequence[int]) -> flow.Tensor:
    """Returns maps of another size: averaged down, and enlarged by taking the nearest pixel."""
    smaller = tuple(map(min, x.shape[2:], size))
    if smaller != tuple(x.shape[2:]):
        x = F.adaptive_avg_pool2d(x, smaller)
    return x if smaller == tuple(size) else F.interpolate(x, size=tuple(size), mode="nearest")


def _as_maps(features: flow.Tensor) -> flow.Tensor:
    """Returns maps, (B, C, H, W); a vector has one pixel."""
    return features.reshape(*features.shape, 1, 1) if features.ndim == 2 else features
